#!/usr/bin/env bash
# Embeddings of all images, with five augmented copies of each for the support of tasks.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  for method in $methods; do
    folder=$out/scgm/${representation}_${method}_seed$seed
    python save_features.py --config $configs/save_features-$settings.yaml $precision --extractor $folder/extractor --data $out/data --out $folder/features
  done
done
