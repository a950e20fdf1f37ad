#!/usr/bin/env bash
# Centroids of the base classes and their analogies, for the representations that get a generator.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  if [ -f "$(settings_of $dataset train_analogy_generator $name)" ]; then
    python make_quadruplet.py --config $configs/make_quadruplet-$dataset.yaml --features $out/$name/features/train.h5 \
      --split $out/data/split.json --out $out/$name/quadruplets.h5
  fi
done
