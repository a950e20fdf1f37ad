#!/usr/bin/env bash
# Images, split and draws.
source "$(dirname "$0")/common.sh"
python preprocessing.py --config $configs/preprocessing-$dataset.yaml $data_root --out $out/data
