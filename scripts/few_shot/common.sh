# Sourced by the numbered scripts: the published split (first argument) and the extractor trained on it.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 SPLIT" >&2
  cat >&2 <<'END'

  omniglot_vinyals   about two hours on two cores; downloads 15 MB
  cifar_fs, fc100    hours on two cores (not measured); downloads 170 MB
  mini_imagenet, tiered_imagenet
                     a GPU (not measured); need DATA_ROOT, see docs/data.md

DATA_ROOT=DIR    where the images are (default: data/, with a download)
REPRESENTATION   another extractor, such as resnet12 (default: resnet12_quarter on the first three)
DEVICES          number of GPUs for training (default: 1)

Writes outputs/SPLIT/report/report.html. More: docs/recipes/few_shot.md
END
  exit 2
}
dataset=${1:-}
case $dataset in
  omniglot_vinyals) takes="about two hours on two cores" default=resnet12_quarter n_ways="5 20" kinds="balanced dirichlet within_superclass" ;;
  cifar_fs) takes="hours on two cores (not measured)" default=resnet12_quarter n_ways=5 kinds="balanced dirichlet" ;;
  fc100) takes="hours on two cores (not measured)" default=resnet12_quarter n_ways=5 kinds="balanced dirichlet within_superclass" ;;
  mini_imagenet | tiered_imagenet) takes="a GPU (not measured)" default=resnet12 n_ways=5 kinds="balanced dirichlet" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# Another extractor of the recipe: REPRESENTATION=resnet12 bash scripts/few_shot/2_train_extractor.sh cifar_fs (a GPU machine)
representation=${REPRESENTATION:-$default}
out=outputs/$dataset
configs=configs/few_shot
check_config $configs/train_extractor-$dataset-$representation.yaml
