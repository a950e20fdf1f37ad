#!/usr/bin/env bash
# The low-shot benchmark of each representation, without generation and (where there is a generator) with it.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  inputs="--train $out/$name/features/train.h5 --test $out/$name/features/test.h5
    --split $out/data/split.json --draws $out/data/draws.json"
  python low_shot.py --config "$(settings_of $dataset low_shot $name)" $inputs --out $out/results/$name.json
  if [ -f "$(settings_of $dataset train_analogy_generator $name)" ]; then
    python low_shot.py --config "$(settings_of $dataset low_shot $name -generated)" $inputs --add.generator $out/$name/generator \
      --out $out/results/${name}_generated.json
  fi
done
