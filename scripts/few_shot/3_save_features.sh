#!/usr/bin/env bash
# Features of the whole pool.
source "$(dirname "$0")/common.sh"
python save_features.py --config $configs/save_features-$dataset.yaml --extractor $out/$representation/extractor --data $out/data \
  --out $out/$representation/features
