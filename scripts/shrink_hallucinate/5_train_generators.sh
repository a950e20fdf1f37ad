#!/usr/bin/env bash
# The analogy generator of each representation that has a configuration for one.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  # The critic is the extractor's classifier; if that knows other classes, one is fitted to the centroids.
  critic="--extractor $(extractor_of $dataset $name)"
  case $(training_data $name) in *_rotated) critic="" ;; esac
  if [ -f "$(settings_of $dataset train_analogy_generator $name)" ]; then
    python train_analogy_generator.py --config "$(settings_of $dataset train_analogy_generator $name)" \
      --quadruplets $out/$name/quadruplets.h5 $critic --out $out/$name/generator
  fi
done
