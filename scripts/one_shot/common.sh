# Sourced by the numbered scripts: the data set (first argument), its features, and the numbers of shots.
usage() {
  [ -z "$dataset" ] || echo "$dataset: not one of this recipe" >&2
  echo "usage: bash $0 DATASET" >&2
  cat >&2 <<'END'

  cifar100    about an hour on two busy cores; downloads 170 MB
  omniglot    hours on two cores (not measured as a whole); downloads 15 MB

DATA_ROOT=DIR    where the images are (default: data/, with a download)
REPRESENTATION   another extractor of shrink_hallucinate, such as resnet10_plain or, of omniglot, conv4_plain (default:
                 airbench_plain_released); its results are in results_one_shot_NAME
SHOTS            numbers of shots (default: "1 5 20"; omniglot: "1 5")

Writes outputs/DATASET/report_one_shot/report.html. More: docs/recipes/one_shot.md
END
  exit 2
}
dataset=${1:-}
# Copies of photos are shifted and mirrored, those of characters shifted only.
case $dataset in
  cifar100) takes="about an hour on two busy cores" default_shots="1 5 20" copies="--copies.augment.shift_pixels 4 --copies.augment.flip" ;;
  omniglot) takes="hours on two cores (not measured as a whole)" default_shots="1 5" copies="--copies.augment.shift_pixels 2" ;;
  *) usage ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
default=airbench_plain_released
name=${REPRESENTATION:-$default}
# Settings of the linear classifier of shrink_hallucinate.
low_shot_config=$(settings_of $dataset low_shot $name)
check_representation "$low_shot_config"
shots=${SHOTS:-$default_shots}
out=outputs/$dataset
results=$out/results_one_shot
[ "$name" = $default ] || results+=_$name
configs=configs/one_shot
