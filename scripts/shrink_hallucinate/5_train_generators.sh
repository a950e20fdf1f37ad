#!/usr/bin/env bash
# The analogy generator of each representation that has a configuration for one.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  if [ -f "$(settings train_analogy_generator $name)" ]; then
    python train_analogy_generator.py --config "$(settings train_analogy_generator $name)" \
      --quadruplets $out/$name/quadruplets.h5 --extractor "$(extractor_of $dataset $name)" --out $out/$name/generator
  fi
done
