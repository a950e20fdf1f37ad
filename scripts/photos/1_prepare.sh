#!/usr/bin/env bash
# Images, base and novel classes, shots. Corrupt photos are left out, and named. A small network sees 32 pixels; pretrained ones the files.
source "$(dirname "$0")/common.sh"
size=$([ -n "$timm" ] || echo "--dataset.image_size 32")
python preprocessing.py --dataset folder --root "$folder" --dataset.skip_corrupt true --dataset.max_shots $max_shots $size \
  ${NOVEL_CLASSES:+--dataset.novel_classes "$NOVEL_CLASSES"} ${BASE_MIN:+--dataset.base_min "$BASE_MIN"} --out "$out/data"
