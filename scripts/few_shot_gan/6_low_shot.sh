#!/usr/bin/env bash
# The low-shot benchmark with and without samples of the GANs, on the same shots: four rows of a class, one of them real, for every shot
# (chosen by choose.sh).
source "$(dirname "$0")/common.sh"
list() { echo "[$(echo $* | tr ' ' ,)]"; }
for seed in $seeds; do
  features=$out/seed$seed/$representation/features
  run() {
    python low_shot.py --config $configs/low_shot.yaml --train $features/train.h5 --test $features/test.h5 --split $out/seed$seed/data/split.json \
      --draws $out/seed$seed/data/draws.json --trials "$(list $trials)" "$@"
  }
  run --name "classifier" --shots "$(list $shots)" --out $results/seed$seed/low_shot.json
  for kind in $kinds; do
    for k in $shots; do
      run --samples "$out/seed$seed/samples/$kind$network/trial{trial}_k$k/train.h5" --shots "[$k]" --max_per_label $((4 * k)) \
        --name "classifier + samples ($kind$network)" --out $results/seed$seed/low_shot-$kind$network-k$k.json
    done
  done
done
