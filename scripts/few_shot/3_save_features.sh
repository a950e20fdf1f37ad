#!/usr/bin/env bash
# Features of the whole pool.
source "$(dirname "$0")/common.sh"
python save_features.py $views --extractor "$(extractor_of $dataset $representation)" --data $out/data --out $out/$representation/features
