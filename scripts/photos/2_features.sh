#!/usr/bin/env bash
# Features of all photos, by a pretrained model or by a small network that is trained on the base classes.
source "$(dirname "$0")/common.sh"
echo "features of $n_photos photos by ${timm:-a small network}: about $minutes minutes"
if [ -z "$timm" ]; then
  python train_extractor.py --config $configs/train_extractor.yaml --data "$out/data" --out "$out/$name/extractor"
fi
python save_features.py ${timm_model:---extractor $out/$name/extractor} --data "$out/data" --out "$features"
