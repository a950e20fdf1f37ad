# Sourced by the numbered scripts: the data set (first argument), the seeds of its class splits, shots and kinds of fine-tuning.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 DATASET" >&2
  cat >&2 <<'END'

  emnist_fs     5 pre-trainings of 11 to 29 minutes and 40 fine-tunings of 9 to 29, on a core; downloads 560 MB
                With SEEDS=0 SHOTS=5 (one class split, 5 shots): 1 pre-training and 2 fine-tunings
  omniglot_fs   5 pre-trainings of 43 minutes and 10 fine-tunings of 12, on a core; downloads 15 MB
  cifar100_fs   a GPU (not measured); downloads 170 MB

DATA_ROOT=DIR           where the images are (default: data/, with a download)
SEEDS, SHOTS, TRIALS    part of the recipe (default: SEEDS="0 1 2 3 4" SHOTS="5 10 15 25" TRIALS=1 on emnist_fs)
KINDS                   kinds of fine-tuning (default: "supervised semi_supervised"; omniglot_fs: also described)
MAX_PER_CLASS           keep at most that many images per class
REPRESENTATION          another extractor: airbench on emnist_fs (default: conv4; resnet18 on cifar100_fs)
NETWORK=published       the published networks (emnist_fs); with IMAGE_SIZE=32 at the published size
IMAGE_SIZE              side of the images (emnist_fs, omniglot_fs; default: 28)
JUDGE                   a pretrained timm model that scores the samples too, such as tf_efficientnet_lite0
PRECISION               of training: 32-true, bf16-mixed, ...

Writes outputs/DATASET/report_few_shot_gan/report.html. More: docs/recipes/few_shot_gan.md
END
  exit 2
}
dataset=${1:-}
default_kinds="supervised semi_supervised"
case $dataset in
  emnist_fs)
    takes="11 to 29 minutes per pre-training and 9 to 29 per fine-tuning on a core"
    default=conv4 default_shots="5 10 15 25" max_shots=25 n_per_class=600 n_per_base_class=200
    ;;
  # Its GANs describe classes by features: they need no fine-tuning for novel classes (kind described).
  omniglot_fs)
    takes="43 minutes per pre-training and 12 per fine-tuning on a core"
    default=conv4 default_shots=5 max_shots=5 n_per_class=50 n_per_base_class=16
    default_kinds="described $default_kinds" by_features=true
    ;;
  cifar100_fs)
    takes="a GPU (not measured)"
    default=resnet18 default_shots="50 100" max_shots=100 n_per_class=900 n_per_base_class=120
    ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# A seed is a class split of its own, with an extractor and a GAN of its own; a trial is another draw of the shots.
seeds=${SEEDS:-0 1 2 3 4}
trials=${TRIALS:-1}
shots=${SHOTS:-$default_shots}
representation=${REPRESENTATION:-$default}
# NETWORK=published: the published networks, trained as published.
network=${NETWORK:+-$NETWORK}
[ -z "$network" ] || [ "$network-$dataset" = -published-emnist_fs ] || { echo "NETWORK: only published, and only of emnist_fs" >&2 && exit 2; }
kinds=${KINDS:-$default_kinds}
precision=${PRECISION:+--precision $PRECISION}
max_per_class=${MAX_PER_CLASS:+--dataset.max_per_class $MAX_PER_CLASS}
# The published generator at 32 px doubles the side four times.
image_size=${IMAGE_SIZE:+--dataset.image_size $IMAGE_SIZE}
[ "$network-${IMAGE_SIZE:-}" = -published-32 ] && doublings="--blocks_per_res 1 1 1 1" || doublings=
out=outputs/$dataset${IMAGE_SIZE:+_${IMAGE_SIZE}px}
[ "$representation" = $default ] || out+=_$representation # the GANs depend on it, too
results=$out/results_few_shot_gan
judge=${JUDGE:-}
# Copies of the shots have the random changes that the extractor was trained with.
case $dataset in
  cifar100_fs) copies="--copies 3 --copies.augment.shift_pixels 4 --copies.augment.flip" ;;
  *) copies="--copies 3 --copies.augment.shift_pixels 2 --copies.augment.rotate_degrees 10 --copies.augment.scale 0.1 --copies.augment.shear_degrees 5" ;;
esac
configs=configs/few_shot_gan
check_representation $configs/train_extractor-$dataset-$representation.yaml
