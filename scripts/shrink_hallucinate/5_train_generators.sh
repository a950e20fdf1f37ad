#!/usr/bin/env bash
# The analogy generator of each representation that has a configuration for one.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  if [ -f $configs/train_analogy_generator-$dataset-$name.yaml ]; then
    python train_analogy_generator.py --config $configs/train_analogy_generator-$dataset-$name.yaml \
      --quadruplets $out/$name/quadruplets.h5 --extractor $out/$name/extractor --out $out/$name/generator
  fi
done
