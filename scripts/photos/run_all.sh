#!/usr/bin/env bash
# The whole recipe on a folder of photos. Finished stages are skipped; without an argument it prints what there is.
source "$(dirname "$0")/common.sh"
echo "photos: $n_photos photos of $n_classes classes; features by ${timm:-a small network}: about $minutes minutes, the rest about as much again.
Ctrl-C stops it, and the same command continues."
if [ $can_judge = 0 ]; then
  echo "photos: too few to judge new classes on. That takes ten classes with 25 photos each: half of the classes choose settings, and a fifth of
the photos is for test. Instead, a classifier of all classes is made; what it says of its held-out photos is how good it is."
  python predict.py fit --images "$folder" ${timm_model:?"a small network needs more photos. Use TIMM=NAME"} --out "$out/classifier"
  exit
fi
for stage in scripts/photos/[1-9]_*.sh; do
  echo "== bash $stage $folder"
  bash "$stage" "$folder"
done
echo "a classifier of all classes:
  python predict.py fit --images $folder ${timm_model:---extractor $out/$name/extractor} --out $out/classifier"
