#!/usr/bin/env bash
# One generator for each scope of the quadruplets.
source "$(dirname "$0")/common.sh"
for scope in global superclass; do
  python train_analogy_generator.py --config $configs/train_analogy_generator-$size.yaml --extractor $out/extractor \
    --quadruplets $out/quadruplets_$scope.h5 --out $out/generator_$scope
done
