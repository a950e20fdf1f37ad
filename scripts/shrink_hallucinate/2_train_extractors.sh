#!/usr/bin/env bash
# One extractor per representation (plain, SGM, ...). DEVICES=8 trains on eight GPUs of this machine.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  python train_extractor.py --config $configs/train_extractor-$dataset-$name.yaml --devices "${DEVICES:-1}" \
    --data $out/data --out $out/$name/extractor
done
