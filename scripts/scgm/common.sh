# Sourced by the numbered scripts: the data set (first argument), its backbone, the methods and the seeds.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 DATASET" >&2
  cat >&2 <<'END'

  omniglot    12 trainings of 2 to 16 minutes on a core; downloads 15 MB
  cifar100    12 trainings of 6 to 40 minutes on a core; downloads 170 MB
  living17, nonliving26, entity13, entity30, tiered_imagenet
              GPUs (not measured); need DATA_ROOT, see docs/data.md

DATA_ROOT=DIR    where the images are (default: data/, with a download)
METHODS, SEEDS   part of the recipe (default: METHODS="coarse scgm_g ancor scgm_a" SEEDS="0 1 2")
REPRESENTATION   another backbone, such as resnet12 on cifar100 (a GPU)
PRECISION        bf16-mixed is faster on GPUs and with AMX or AVX512_BF16, slower on other processors (default: 32-true)
DEVICES          number of GPUs for training (default: 1)

Writes outputs/DATASET/report_scgm/report.html. More: docs/recipes/scgm.md
END
  exit 2
}
dataset=${1:-}
case $dataset in
  cifar100)
    takes="12 trainings of 6 to 40 minutes on a core" default=resnet10_quarter classes=all
    prepared="--config configs/shrink_hallucinate/preprocessing-cifar100.yaml"
    ;;
  omniglot)
    takes="12 trainings of 2 to 16 minutes on a core" default=conv4 classes=all
    prepared="--config configs/shrink_hallucinate/preprocessing-omniglot.yaml"
    ;;
  living17 | nonliving26 | entity13 | entity30) takes="GPUs (not measured)" default=resnet50 prepared="--dataset $dataset" classes=all ;;
  tiered_imagenet) takes="GPUs (not measured)" default=resnet12 prepared="--dataset $dataset" classes=novel ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# Another backbone of the recipe: REPRESENTATION=resnet12 bash scripts/scgm/run_all.sh cifar100 (a GPU machine)
representation=${REPRESENTATION:-$default}
methods=${METHODS:-coarse scgm_g ancor scgm_a}
seeds=${SEEDS:-0 1 2}
precision=${PRECISION:+--precision $PRECISION}
out=outputs/$dataset
results=$out/results_scgm
configs=configs/scgm
# The four BREEDS benchmarks share their settings.
case $dataset in living17 | nonliving26 | entity*) settings=breeds ;; *) settings=$dataset ;; esac
check_representation $configs/train_scgm-$settings-$representation.yaml
# The files of a method: what all share, and what it has of its own.
configs_of() {
  local shared=$configs/train_scgm-$settings-$representation
  echo "--config $shared.yaml"
  [ ! -e "$shared-$1.yaml" ] || echo "--config $shared-$1.yaml"
}
