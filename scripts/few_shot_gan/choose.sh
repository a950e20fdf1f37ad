#!/usr/bin/env bash
# Compares rows of a novel class, samples and k shots together, on the validation setup, for the first seed; the test setup stays unseen. The
# evidence stands in outputs/<dataset>/results_few_shot_gan_validation; 6_low_shot.sh takes four times k.
source "$(dirname "$0")/common.sh"
seed=${seeds%% *}
features=$out/seed$seed/$representation/features
for kind in $kinds; do
  for k in $shots; do
    python low_shot.py --config $configs/low_shot.yaml --setup validation --select $configs/grids/low_shot-k$k.yaml --criterion top1_novel_base \
      --train $features/train.h5 --test $features/test.h5 --split $out/seed$seed/data/split.json --draws $out/seed$seed/data/draws.json \
      --shots "[$k]" --trials "[1]" --samples "$out/seed$seed/samples/$kind$network/trial{trial}_k{n_shot}/train.h5" \
      --out "${results}_validation/seed$seed-$kind$network-k$k.json"
  done
done
