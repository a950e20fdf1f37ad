# Sourced by the numbered scripts: the data set (first argument), its features, and which unlabelled images join the graph.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
dataset=${1:-cifar100}
case $dataset in
  imagenet) name=resnet50_plain images="none" ;;
  cifar100) name=resnet10_plain images="none novel all" ;;
  omniglot) name=conv4_plain images="none novel all" ;;
  *) echo "usage: $0 [imagenet|cifar100|omniglot]" >&2 && exit 2 ;;
esac
out=outputs/$dataset
results=$out/results_diffusion
configs=configs/diffusion
inputs="--train $out/$name/features/train.h5 --test $out/$name/features/test.h5 --split $out/data/split.json"
# ImageNet: this many images of YFCC100M are the background, read below YFCC_ROOT.
n_background=${N_BACKGROUND:-1000000}
yfcc=outputs/yfcc100m_$n_background
[ "$dataset" = imagenet ] && images="$images background"
graphs=$out/$name/graphs
