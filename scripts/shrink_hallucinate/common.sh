# Sourced by the numbered scripts: the data set (first argument) and what the recipe trains on it.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 DATASET" >&2
  cat >&2 <<'END'

  omniglot    964 base and 659 novel characters; about two hours on two cores; downloads 15 MB
  cifar100    80 base and 20 novel classes; about two hours on two cores; downloads 170 MB
  imagenet    the published benchmark; GPUs (days, not measured); needs DATA_ROOT, see docs/data.md

DATA_ROOT=DIR     where the images are (default: data/, with a download)
REPRESENTATIONS   which extractors, such as "resnet10_sgm" (default: all of the recipe); airbench_sgm_seed1 is trained with
                  another seed, airbench_sgm_released is in examples/extractors
PRECISION         of training: bf16-mixed is faster on GPUs and with AMX or AVX512_BF16, slower on other processors (default: 32-true)
DEVICES           number of GPUs for training (default: 1)

Writes outputs/DATASET/report/report.html. More: docs/recipes/shrink_hallucinate.md
END
  exit 2
}
dataset=${1:-}
case $dataset in
  imagenet) takes="GPUs, days (not measured)" default="resnet10_plain resnet10_sgm resnet10_batchsgm resnet10_l2 resnet50_plain resnet50_sgm" ;;
  cifar100) takes="about two hours on two cores" default="resnet10_plain resnet10_sgm" ;;
  omniglot) takes="about two hours on two cores" default="conv4_plain conv4_sgm" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# A part of the recipe, e.g. in a cluster job: REPRESENTATIONS=resnet10_sgm bash scripts/shrink_hallucinate/2_train_extractors.sh imagenet
representations=${REPRESENTATIONS:-$default}
out=outputs/$dataset
configs=configs/shrink_hallucinate
precision=${PRECISION:+--precision $PRECISION}
# Airbench learns characters from their rotations too, which are classes of their own.
training_data() {
  case $dataset-$1 in omniglot-airbench*) echo "$out/data_rotated" ;; *) echo "$out/data" ;; esac
}
for name in $representations; do check_representation "$(source_of $dataset $name "$(settings_of $dataset train_extractor $name)")"; done
