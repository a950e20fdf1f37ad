# Sourced by the numbered scripts: the published split (first argument) and the extractor trained on it.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
dataset=${1:-omniglot_vinyals}
case $dataset in
  omniglot_vinyals) default=resnet12_quarter n_ways="5 20" kinds="balanced dirichlet within_superclass" ;;
  cifar_fs) default=resnet12_quarter n_ways=5 kinds="balanced dirichlet" ;;
  fc100) default=resnet12_quarter n_ways=5 kinds="balanced dirichlet within_superclass" ;;
  mini_imagenet | tiered_imagenet) default=resnet12 n_ways=5 kinds="balanced dirichlet" ;;
  *) echo "usage: $0 [omniglot_vinyals|cifar_fs|fc100|mini_imagenet|tiered_imagenet]" >&2 && exit 2 ;;
esac
# Another extractor of the recipe: REPRESENTATION=resnet12 bash scripts/few_shot/2_train_extractor.sh cifar_fs (a GPU machine)
representation=${REPRESENTATION:-$default}
# Where the images are: DATA_ROOT=/datasets. Without it data/, where CIFAR-100 and Omniglot are downloaded to.
data_root=${DATA_ROOT:+--root $DATA_ROOT}
out=outputs/$dataset
configs=configs/few_shot
