#!/usr/bin/env bash
# The low-shot benchmark with and without samples of the GANs, on the same shots; three samples a shot, as chosen by
# choose.sh on EMNIST, seed 0, k = 5 (docs/results/emnist.md). Beside them stand the rows that cost a second: as many rows drawn around the shots, as many
# augmented copies of the shots, and the GANs' unlabelled images without any GAN, labelled by soft k-means or PT-MAP. On the test half of the
# classes, and, as in the paper, on all of them.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  features=$out/seed$seed/$representation/features
  run() {
    python low_shot.py --train $features/train.h5 --test $features/test.h5 --split $out/seed$seed/data/$classes.json \
      --draws $out/seed$seed/data/draws.json --trials $trials --shots $shots "$@"
  }
  # One classifier with all rows: rows NAME OPTIONS, which make results NAME*.json
  rows() {
    local name=$1 to=$results/seed$seed/$1
    [ $classes = split ] || to=$results/seed$seed/whole/$1
    shift
    run "$@" --name "$name" --out $to.json
    run "$@" --add.copies --name "$name + copies of the shots" --out $to-copies.json
    run "$@" --add.pool --add.pool.images gan --name "$name + pool" --out $to-pool.json
    run "$@" --add.copies --add.pool pt_map --add.pool.images gan --name "$name + copies of the shots + pool (pt_map)" --out $to-copies-pool-pt_map.json
    for k in $shots; do # three rows a shot, as of samples
      run "$@" --shots $k --add.calibrated --add.calibrated.max_per_label $((4 * k)) --name "$name + calibrated rows" --out $to-calibrated-k$k.json
    done
    for kind in $kinds; do
      run "$@" --add.samples.per_shot 3 --add.samples "$out/seed$seed/samples/$kind$network/trial{trial}_k{n_shot}/train.h5" \
        --name "$name + samples ($kind$network)" --out $to-$kind$network.json
    done
  }
  for classes in split whole; do
    rows classifier --config $configs/low_shot.yaml
    for few_shot in nearest_mean imprinting; do
      rows $few_shot --classifier $few_shot --transform.centre --transform.normalise
    done
  done
done
