#!/usr/bin/env bash
# Classifiers of base and novel classes together: each without a bias of the novel classes, then with the one that is best on the validation setup, for
# each n; imprinting and logistic regression also with additional rows. A pool is of unlabelled images of the novel classes.
source "$(dirname "$0")/common.sh"
# A row NAME of the tables with OPTIONS: row NAME OPTIONS
row() {
  python low_shot.py --train $out/$name/features_copies/train.h5 --test $out/$name/features/test.h5 --split $out/data/split.json \
    --draws $out/data/draws.json --extractor $name --shots $shots "${@:2}" --out "$results/$1.json"
}
# The same with settings chosen by GRID: chosen NAME GRID OPTIONS
chosen() {
  row "$1" --select $configs/grids/"$2".yaml --select.per_shot --select.criterion top1_harmonic_mean "${@:3}"
}
logistic="--classifier logistic_regression --classifier.tolerance 0.0001"
directions="--transform.centre --transform.normalise"
row nearest_mean --classifier nearest_mean $directions
chosen nearest_mean-bias bias-distances --classifier nearest_mean $directions
for classifier in imprinting attention; do
  row $classifier --classifier $classifier
  chosen $classifier-bias bias --classifier $classifier
done
for addition in copies calibrated pool "pool pt_map" "pool adaptive_transport"; do
  chosen "imprinting-bias-${addition// /-}" bias --classifier imprinting --add.$addition
done
# Linear classifiers: the published one, its optimum, and the same for rare classes.
row linear_sgd --config "$low_shot_config"
row logistic_regression $logistic
chosen logistic_regression-bias bias $logistic
chosen logistic_regression-bias-pool-pt_map bias $logistic --add.pool pt_map
chosen logit_adjusted logit_adjusted --classifier logit_adjusted --classifier.tolerance 0.0001
# Distribution calibration as published: logistic regression in the space of powered features.
chosen logistic_regression-power-bias bias $logistic --transform.power 0.5
chosen logistic_regression-power-bias-calibrated calibrated $logistic --transform.power 0.5 --add.calibrated
