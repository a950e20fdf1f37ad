# Sourced by the numbered scripts: the size of the recipe (first argument), two_cores or paper.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
size=${1:-two_cores}
case $size in
  two_cores | paper) ;;
  *) echo "usage: $0 [two_cores|paper]" >&2 && exit 2 ;;
esac
data=outputs/cifar100/data
name=vgg16_$size
out=outputs/cifar100/$name
results=outputs/cifar100/results_$name
configs=configs/analogy_cifar100
