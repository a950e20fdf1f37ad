#!/usr/bin/env bash
# A GAN of the base classes.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  python train_gan.py pretrain --config $configs/train_gan-$dataset$network-pretrain.yaml $doublings $precision --seed $seed --data $out/seed$seed/data \
    --extractor $out/seed$seed/$representation/extractor --out $out/seed$seed/gan/pretrained$network
done
