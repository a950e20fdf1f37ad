#!/usr/bin/env bash
# Images, extractor and features, shared with the recipe shrink_hallucinate; for ImageNet also those of the background.
source "$(dirname "$0")/common.sh"
for stage in 1_prepare 2_train_extractors 3_save_features; do
  REPRESENTATIONS=$name bash scripts/shrink_hallucinate/$stage.sh "$dataset"
done
if [ "$dataset" = imagenet ]; then
  python preprocessing.py --dataset yfcc100m --root "${YFCC_ROOT:-data/yfcc100m}" --dataset.start "${START:-0}" --dataset.count "$n_background" --out $yfcc/data
  python save_features.py --extractor "$(extractor_of $dataset $name)" --data $yfcc/data --out $yfcc/$name/features
fi
