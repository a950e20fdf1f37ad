#!/usr/bin/env bash
# Images, extractor and features, shared with the recipe shrink_hallucinate; and features of three augmented copies of the training images.
source "$(dirname "$0")/common.sh"
for stage in 1_prepare 2_train_extractors 3_save_features; do
  REPRESENTATIONS=$name bash scripts/shrink_hallucinate/$stage.sh "$dataset"
done
python save_features.py --extractor "$(extractor_of $dataset $name)" --data $out/data --part train --copies 3 $copies --out $out/$name/features_copies
