# Sourced by the numbered scripts: the folder of photos (first argument), and what follows from its photos (plan.py).
usage() {
  echo "usage: bash $0 FOLDER" >&2
  cat >&2 <<'END'

  FOLDER/<class>/*.jpg or FOLDER/<superclass>/<class>/*.jpg, with or without FOLDER/train, val and test above. At least ten classes of 25
  photos: how well are new classes recognised from 1 to 20 photos each? With fewer, a classifier is made, and judged on its own photos.

TIMM            pretrained timm model (default: a small DINOv2, or EfficientNet-Lite0 if only its package can be had);
                none: train a small network on the base classes
NOVEL_CLASSES   file with the names of the novel classes, one per line (default: 40 % are drawn)
BASE_MIN        classes with fewer photos are novel
MAX_SHOTS       shots per class (default: up to 20, as many as the smallest class has photos for training)

Writes outputs/photos/NAME/report/report.html; NAME is that of the folder. More: docs/photos.md
END
  exit 2
}
folder=${1:-}
[ -n "$folder" ] || usage
[ -d "$folder" ] || { echo "$folder: no such folder" >&2 && exit 2; }
folder=$(cd "$folder" && pwd)
[ -z "${NOVEL_CLASSES:-}" ] || NOVEL_CLASSES=$(realpath "$NOVEL_CLASSES")
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
out=outputs/photos/$(basename "$folder" | tr -c 'A-Za-z0-9_.\n-' _)
mkdir -p "$out"
# Made once, so that all stages have the same settings.
planned_for="$folder, $(find "$folder" -type f | wc -l | tr -d ' ') files, TIMM=${TIMM:-}, MAX_SHOTS=${MAX_SHOTS:-}"
if [ ! -f "$out/plan.sh" ]; then
  { echo "# $planned_for" && python scripts/photos/plan.py "$folder"; } > "$out/plan.part" || exit 2
  mv "$out/plan.part" "$out/plan.sh"
elif [ "$(head -n 1 "$out/plan.sh")" != "# $planned_for" ]; then
  echo "$out: was made from $(head -n 1 "$out/plan.sh" | cut -c 3-). Now it is $planned_for. Move it away to begin anew" >&2 && exit 2
fi
# What plan.py writes.
n_classes='' n_photos='' can_judge='' max_shots='' shots='' n_clusters='' timm='' timm_size='' name='' minutes=''
source "$out/plan.sh"
configs=configs/photos
features=$out/$name/features
results=$out/results
inputs="--train $features/train.h5 --test $features/test.h5 --split $out/data/split.json"
timm_model=${timm:+--timm $timm ${timm_size:+--timm.image_size $timm_size}}
