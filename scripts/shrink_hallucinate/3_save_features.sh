#!/usr/bin/env bash
# Features of all images, train and test.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  python save_features.py --extractor "$(extractor_of $dataset $name)" --data $out/data --out $out/$name/features
done
