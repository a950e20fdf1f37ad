# Sourced by the numbered scripts: the data set (first argument), its backbone, the methods and the seeds.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
dataset=${1:-cifar100}
case $dataset in
  cifar100) default=resnet10_quarter prepared="--config configs/shrink_hallucinate/preprocessing-cifar100.yaml" classes=all ;;
  omniglot) default=conv4 prepared="--config configs/shrink_hallucinate/preprocessing-omniglot.yaml" classes=all ;;
  living17 | nonliving26 | entity13 | entity30) default=resnet50 prepared="--dataset $dataset" classes=all ;;
  tiered_imagenet) default=resnet12 prepared="--dataset $dataset" classes=novel ;;
  *) echo "usage: $0 [cifar100|omniglot|living17|nonliving26|entity13|entity30|tiered_imagenet]" >&2 && exit 2 ;;
esac
# Another backbone of the recipe: REPRESENTATION=resnet12 bash scripts/scgm/run_all.sh cifar100 (a GPU machine)
representation=${REPRESENTATION:-$default}
methods=${METHODS:-coarse scgm_g ancor scgm_a}
seeds=${SEEDS:-0 1 2}
precision=${PRECISION:+--precision $PRECISION}
# Where the images are: DATA_ROOT=/datasets. Without it data/, where CIFAR-100 and Omniglot are downloaded to.
data_root=${DATA_ROOT:+--root $DATA_ROOT}
out=outputs/$dataset
results=$out/results_scgm
configs=configs/scgm
# The four BREEDS benchmarks share their settings.
case $dataset in living17 | nonliving26 | entity*) settings=breeds ;; *) settings=$dataset ;; esac
# The files of a method: what all share, and what it has of its own.
configs_of() {
  local shared=$configs/train_scgm-$settings-$representation
  echo "--config $shared.yaml"
  [ ! -e "$shared-$1.yaml" ] || echo "--config $shared-$1.yaml"
}
