#!/usr/bin/env bash
# ResNet-12 on the training classes. DEVICES=8 trains on eight GPUs of this machine.
source "$(dirname "$0")/common.sh"
python train_extractor.py --config $configs/train_extractor-$dataset-$representation.yaml --devices "${DEVICES:-1}" $precision \
  --data $out/data --out $out/$representation/extractor
