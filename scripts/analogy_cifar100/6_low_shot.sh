#!/usr/bin/env bash
# The MLP over all classes: shots alone, repeated shots, and generated rows with pairs from all base classes or the seed's superclass.
source "$(dirname "$0")/common.sh"
rows=40 # a novel class, as in the CIFAR system
benchmark() {
  python low_shot.py --config $configs/low_shot-$size.yaml --train $out/features/train.h5 --test $out/features/test.h5 \
    --split $data/split.json --draws $data/draws.json "$@"
}
benchmark --out $results/shots.json
benchmark --add.repetition $rows --out $results/repetition.json
for scope in all superclass; do
  [ $scope = all ] && trained=global name="mlp + analogies" || trained=superclass name="mlp + superclass analogies"
  benchmark --add.generator $out/generator_$trained --add.generator.pairs features --add.generator.pair_scope $scope \
    --add.generator.max_per_label $rows --name "$name" --out $results/$trained.json
done
