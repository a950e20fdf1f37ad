#!/usr/bin/env bash
# The low-shot benchmark with and without samples of the GANs, on the same shots; three samples a shot, as chosen by
# choose.sh on EMNIST, seed 0, k = 5 (docs/RESULTS.md). On the test half of the classes, and, as in the paper, on all of them.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  features=$out/seed$seed/$representation/features
  run() {
    python low_shot.py --config $configs/low_shot.yaml --train $features/train.h5 --test $features/test.h5 --split $out/seed$seed/data/$classes.json \
      --draws $out/seed$seed/data/draws.json --trials $trials --shots $shots "$@"
  }
  for classes in split whole; do
    [ $classes = split ] && to=$results/seed$seed || to=$results/seed$seed/whole
    run --name "classifier" --out $to/low_shot.json
    for kind in $kinds; do
      run --add.samples.per_shot 3 --add.samples "$out/seed$seed/samples/$kind$network/trial{trial}_k{n_shot}/train.h5" \
        --name "classifier + samples ($kind$network)" --out $to/low_shot-$kind$network.json
    done
  done
done
