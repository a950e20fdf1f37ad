#!/usr/bin/env bash
# Compares numbers of samples on the validation setup, for the first seed and all SHOTS together; the test setup stays unseen. The evidence stands
# in outputs/<dataset>/results_few_shot_gan_validation; what was chosen is in 6_low_shot.sh.
source "$(dirname "$0")/common.sh"
seed=${seeds%% *}
features=$out/seed$seed/$representation/features
for kind in $kinds; do
  python low_shot.py --config $configs/low_shot.yaml --setup validation --select $configs/grids/low_shot.yaml --select.criterion top1_novel_base \
    --train $features/train.h5 --test $features/test.h5 --split $out/seed$seed/data/split.json --draws $out/seed$seed/data/draws.json \
    --shots $shots --trials "[1]" --add.samples "$out/seed$seed/samples/$kind$network/trial{trial}_k{n_shot}/train.h5" \
    --out "${results}_validation/seed$seed-$kind$network.json"
done
