#!/usr/bin/env bash
# Images, split and draws.
source "$(dirname "$0")/common.sh"
prepare() {
  python preprocessing.py --config $configs/preprocessing-$dataset.yaml ${DATA_ROOT:+--root "$DATA_ROOT"} "$@"
}
prepare --out $out/data
for name in $representations; do
  case $(training_data $name)-$name in *_released) ;; *_rotated-*) prepare --rotations true --out $out/data_rotated ;; esac
done
