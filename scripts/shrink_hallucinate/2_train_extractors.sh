#!/usr/bin/env bash
# One extractor per representation (plain, SGM, ...). DEVICES=8 trains on eight GPUs of this machine.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  case $name in
    *_released) continue ;;
    *_seed[0-9]) seed="--seed ${name##*_seed}" ;;
    *) seed="" ;;
  esac
  python train_extractor.py --config "$(settings_of $dataset train_extractor $name)" $seed --devices "${DEVICES:-1}" $precision \
    --data "$(training_data $name)" --out "$(extractor_of $dataset $name)"
done
