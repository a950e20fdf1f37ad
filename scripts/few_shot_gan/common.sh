# Sourced by the numbered scripts: the data set (first argument), the seeds of its class splits, shots and kinds of fine-tuning.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
dataset=${1:-emnist_fs}
default_kinds="supervised semi_supervised"
case $dataset in
  emnist_fs) representation=conv4 default_shots="5 10 15 25" max_shots=25 n_per_class=600 n_per_base_class=200 ;;
  # Its GANs know classes by their features: nothing of novel ones before the shots, and from these (described) without any training.
  omniglot_fs)
    representation=conv4 default_shots=5 max_shots=5 n_per_class=50 n_per_base_class=16
    default_kinds="described $default_kinds" by_features=true
    ;;
  cifar100_fs) representation=resnet18 default_shots="50 100" max_shots=100 n_per_class=900 n_per_base_class=120 ;;
  *) echo "usage: $0 [emnist_fs|omniglot_fs|cifar100_fs]" >&2 && exit 2 ;;
esac
# A seed is a class split of its own, with an extractor and a GAN of its own; a trial is another draw of the shots.
seeds=${SEEDS:-0 1 2 3 4}
trials=${TRIALS:-1}
shots=${SHOTS:-$default_shots}
# NETWORK=published: the published networks, trained as published.
network=${NETWORK:+-$NETWORK}
[ -z "$network" ] || [ "$network-$dataset" = -published-emnist_fs ] || { echo "NETWORK: only published, and only of emnist_fs" >&2 && exit 2; }
kinds=${KINDS:-$default_kinds}
precision=${PRECISION:+--precision $PRECISION}
# Where the images are: DATA_ROOT=/datasets. Without it data/, where they are downloaded to. MAX_PER_CLASS=800 keeps so many images of a class.
data_root=${DATA_ROOT:+--root $DATA_ROOT}
max_per_class=${MAX_PER_CLASS:+--dataset.max_per_class $MAX_PER_CLASS}
# SHOTS and TRIALS as commands take them.
list() { echo "[$(echo $* | tr ' ' ,)]"; }
out=outputs/$dataset
results=$out/results_few_shot_gan
configs=configs/few_shot_gan
