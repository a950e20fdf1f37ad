# Sourced by the numbered scripts: the data set (first argument), its features, and which unlabelled images join the graph.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 DATASET" >&2
  cat >&2 <<'END'

  cifar100    15 minutes on two cores, and 20 for the extractor if it is not there; downloads 170 MB
  omniglot    35 minutes on two cores, and 20 for the extractor if it is not there; downloads 15 MB
  imagenet    GPUs (not measured); needs DATA_ROOT and YFCC_ROOT, see docs/recipes/diffusion.md

DATA_ROOT=DIR   where the images are (default: data/, with a download)
YFCC_ROOT=DIR   where the zip files of YFCC100M are (default: data/yfcc100m)
REPRESENTATION  another extractor of shrink_hallucinate, such as airbench_plain_released (default: resnet10_plain; omniglot: conv4_plain;
                imagenet: resnet50_plain); its results are in results_diffusion_NAME
N_BACKGROUND    images of the background (default: 1000000)
LAUNCH          how to start diffusion.py, such as "torchrun --nproc-per-node 8" (default: python)

Writes outputs/DATASET/report_diffusion/report.html. More: docs/recipes/diffusion.md
END
  exit 2
}
dataset=${1:-}
case $dataset in
  imagenet) takes="GPUs (not measured)" default=resnet50_plain images="none" ;;
  cifar100) takes="15 minutes on two cores, and 20 for the extractor if it is not there" default=resnet10_plain images="none novel all" ;;
  omniglot) takes="35 minutes on two cores, and 20 for the extractor if it is not there" default=conv4_plain images="none novel all" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# Another extractor of shrink_hallucinate: REPRESENTATION=airbench_plain_released bash scripts/diffusion/run_all.sh cifar100
name=${REPRESENTATION:-$default}
low_shot_config=$(settings_of $dataset low_shot $name)
check_representation "$low_shot_config"
out=outputs/$dataset
results=$out/results_diffusion
[ "$name" = $default ] || results+=_$name
configs=configs/diffusion
inputs="--train $out/$name/features/train.h5 --test $out/$name/features/test.h5 --split $out/data/split.json"
# ImageNet: this many images of YFCC100M are the background, read below YFCC_ROOT.
n_background=${N_BACKGROUND:-1000000}
yfcc=outputs/yfcc100m_$n_background
[ "$dataset" = imagenet ] && images="$images background"
graphs=$out/$name/graphs
