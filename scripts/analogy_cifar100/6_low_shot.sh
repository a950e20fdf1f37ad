#!/usr/bin/env bash
# The MLP over all classes: shots alone, repeated shots, and generated rows with pairs from all base classes or the seed's superclass. Twice: on the
# test half of the classes, and, as in the system, on all of them (80 base and 20 novel classes).
source "$(dirname "$0")/common.sh"
rows=40 # a novel class, as in the CIFAR system
benchmark() {
  python low_shot.py --config $configs/low_shot-$size.yaml --train $out/features/train.h5 --test $out/features/test.h5 \
    --split $data/$classes.json --draws $data/draws.json "$@"
}
for classes in split whole; do
  [ $classes = split ] && to=$results || to=$results/whole
  benchmark --out $to/shots.json
  benchmark --add.repetition $rows --out $to/repetition.json
  for scope in all superclass; do
    [ $scope = all ] && trained=global name="mlp + analogies" || trained=superclass name="mlp + superclass analogies"
    benchmark --add.generator $out/generator_$trained --add.generator.pairs features --add.generator.pair_scope $scope \
      --add.generator.max_per_label $rows --name "$name" --out $to/$trained.json
  done
done
