# Sourced by the numbered scripts: the published split (first argument) and the extractor trained on it.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 SPLIT" >&2
  cat >&2 <<'END'

  omniglot_vinyals   50 minutes on two cores with AVX2; downloads 15 MB
  cifar_fs           about 12 minutes on two cores; downloads 170 MB
  fc100              12 minutes on two cores with AVX512_BF16 and PRECISION=bf16-mixed; downloads 170 MB
  mini_imagenet, tiered_imagenet
                     a GPU (not measured); need DATA_ROOT, see docs/data.md

DATA_ROOT=DIR    where the images are (default: data/, with a download)
REPRESENTATION   another extractor, such as resnet12 (default: airbench on the first three, of cifar_fs the released one)
PRECISION        of training: bf16-mixed is faster on GPUs and with AMX or AVX512_BF16, slower on other processors (default: 32-true)
DEVICES          number of GPUs for training (default: 1)

Writes outputs/SPLIT/report/report.html. More: docs/recipes/few_shot.md
END
  exit 2
}
dataset=${1:-}
case $dataset in
  omniglot_vinyals) takes="50 minutes on two cores with AVX2" default=airbench n_ways="5 20" kinds="balanced dirichlet within_superclass" ;;
  cifar_fs) takes="about 12 minutes on two cores" default=airbench_released n_ways=5 kinds="balanced dirichlet" ;;
  fc100) takes="12 minutes on two cores with AVX512_BF16 and PRECISION=bf16-mixed" default=airbench n_ways=5 kinds="balanced dirichlet within_superclass" ;;
  mini_imagenet | tiered_imagenet) takes="a GPU (not measured)" default=resnet12 n_ways=5 kinds="balanced dirichlet" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# Another extractor of the recipe: REPRESENTATION=resnet12 bash scripts/few_shot/2_train_extractor.sh cifar_fs (a GPU machine)
representation=${REPRESENTATION:-$default}
precision=${PRECISION:+--precision $PRECISION}
# Features of photos are means over an image and its mirror image. Characters have no mirror image.
case $dataset in omniglot*) views="" ;; *) views="--views mirror" ;; esac
out=outputs/$dataset
configs=configs/few_shot
check_representation "$(source_of $dataset $representation $configs/train_extractor-$dataset-$representation.yaml)"
