#!/usr/bin/env bash
# Features of all images, train and test.
source "$(dirname "$0")/common.sh"
python save_features.py --extractor $out/extractor --data $data --out $out/features
