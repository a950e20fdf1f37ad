#!/usr/bin/env bash
# Images, split and draws.
source "$(dirname "$0")/common.sh"
python preprocessing.py --config $configs/preprocessing-$dataset.yaml ${DATA_ROOT:+--root "$DATA_ROOT"} --out $out/data
