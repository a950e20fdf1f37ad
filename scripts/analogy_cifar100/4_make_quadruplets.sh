#!/usr/bin/env bash
# Analogies with partners from all other classes, and with partners from the same superclass only.
source "$(dirname "$0")/common.sh"
for scope in global superclass; do
  python make_quadruplet.py --config $configs/make_quadruplet.yaml --scope $scope --features $out/features/train.h5 \
    --split $data/split.json --out $out/quadruplets_$scope.h5
done
