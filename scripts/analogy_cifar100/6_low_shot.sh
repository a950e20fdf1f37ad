#!/usr/bin/env bash
# The MLP over all classes: shots alone, repeated shots, and generated rows with pairs from all base classes or the seed's superclass.
source "$(dirname "$0")/common.sh"
benchmark="python low_shot.py --config $configs/low_shot-$size.yaml --train $out/features/train.h5
  --test $out/features/test.h5 --split $data/split.json --draws $data/draws.json"
$benchmark --out $results/shots.json
$benchmark --repetition true --out $results/repetition.json
$benchmark --generator $out/generator_global --pair_scope all --name "mlp + analogies" --out $results/global.json
$benchmark --generator $out/generator_superclass --pair_scope superclass --name "mlp + superclass analogies" \
  --out $results/superclass.json
