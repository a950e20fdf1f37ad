#!/usr/bin/env bash
# Fine-tunes it on k shots of the novel classes: on these alone, and with unlabelled images beside them (described: only tells it of the shots).
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  for trial in $trials; do
    for k in $shots; do
      for kind in $kinds; do
        python train_gan.py finetune --config $configs/train_gan-$dataset-$kind$network-finetune.yaml $precision --seed $seed --k $k --trial $trial \
          --data $out/seed$seed/data --extractor $out/seed$seed/$representation/extractor --gan $out/seed$seed/gan/pretrained$network \
          --out $out/seed$seed/gan/$kind$network/trial${trial}_k$k
      done
    done
  done
done
