#!/usr/bin/env bash
# A generator of features, from analogies between clusters of the base classes. It cannot make negative features, as transformers have them.
source "$(dirname "$0")/common.sh"
can_be_negative="import sys; from pathlib import Path; from lowshot.data.features import read_features; sys.exit(0 if read_features(Path(sys.argv[1])).feats.min() < 0 else 1)"
if python -c "$can_be_negative" "$features/train.h5"; then
  echo "no generator: the features of $name can be negative, which it cannot make"
  exit
fi
python make_quadruplet.py --features "$features/train.h5" --split "$out/data/split.json" --n_clusters $n_clusters --out "$out/$name/quadruplets.h5"
python train_analogy_generator.py --config $configs/train_analogy_generator.yaml --quadruplets "$out/$name/quadruplets.h5" --out "$out/$name/generator"
