#!/usr/bin/env bash
# Images, split and draws.
source "$(dirname "$0")/common.sh"
prepare() {
  python preprocessing.py --config $configs/preprocessing-$dataset.yaml ${DATA_ROOT:+--root "$DATA_ROOT"} "$@"
}
prepare --out $out/data
case $dataset-$representations in omniglot-*airbench*) prepare --rotations true --out $out/data_rotated ;; esac
