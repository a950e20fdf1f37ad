# Sourced by the numbered scripts: the data set (first argument) and what the recipe trains on it.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
dataset=${1:-cifar100}
case $dataset in
  imagenet) default="resnet10_plain resnet10_sgm resnet10_batchsgm resnet10_l2 resnet50_plain resnet50_sgm" ;;
  cifar100) default="resnet10_plain resnet10_sgm" ;;
  omniglot) default="conv4_plain conv4_sgm" ;;
  *) echo "usage: $0 [imagenet|cifar100|omniglot]" >&2 && exit 2 ;;
esac
# A part of the recipe, e.g. in a cluster job: REPRESENTATIONS=resnet10_sgm bash scripts/shrink_hallucinate/2_train_extractors.sh imagenet
representations=${REPRESENTATIONS:-$default}
# Where the images are: DATA_ROOT=/datasets/imagenet. Without it data/, where CIFAR-100 and Omniglot are downloaded to.
data_root=${DATA_ROOT:+--root $DATA_ROOT}
out=outputs/$dataset
configs=configs/shrink_hallucinate
