# Sourced by the numbered scripts: the size of the recipe (first argument), two_cores or paper.
usage() {
  [ -z "$size" ] || echo "$size: not one of this recipe" >&2
  echo "usage: bash $0 SIZE" >&2
  cat >&2 <<'END'

  two_cores   a quarter of the width, random weights; about 40 minutes on two cores; downloads 170 MB
  paper       as published; a GPU (not measured); needs WEIGHTS, torchvision's vgg16-397923af.pth

DATA_ROOT=DIR   where the images are (default: data/, with a download)
DEVICES         number of GPUs for training (default: 1)

Writes outputs/cifar100/report_vgg16_SIZE/report.html. More: docs/recipes/analogy_cifar100.md
END
  exit 2
}
size=${1:-}
case $size in
  two_cores) takes="about 40 minutes on two cores" ;;
  paper) takes="a GPU, hours (not measured)" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
data=outputs/cifar100/data
name=vgg16_$size
out=outputs/cifar100/$name
results=outputs/cifar100/results_$name
configs=configs/analogy_cifar100
