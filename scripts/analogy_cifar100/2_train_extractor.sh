#!/usr/bin/env bash
# VGG-16 with batch norm and the MLP head, on the base classes.
source "$(dirname "$0")/common.sh"
python train_extractor.py --config $configs/train_extractor-$size.yaml --devices "${DEVICES:-1}" --data $data --out $out/extractor
