#!/usr/bin/env bash
# A network on the training classes. DEVICES=8 trains on eight GPUs of this machine.
source "$(dirname "$0")/common.sh"
case $representation in *_released) exit ;; esac
python train_extractor.py --config $configs/train_extractor-$dataset-$representation.yaml --devices "${DEVICES:-1}" $precision \
  --data $out/data --out "$(extractor_of $dataset $representation)"
