#!/usr/bin/env bash
# Chooses the low-shot settings of this recipe: on the validation setup, two trials, n = 1 and 5. The evidence goes to
# outputs/<data set>/validation/*.selection.yaml; what was chosen stands in configs/shrink_hallucinate/low_shot-<data set>-*.yaml.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  inputs="--train $out/$name/features/train.h5 --test $out/$name/features/test.h5
    --split $out/data/split.json --draws $out/data/draws.json --setup validation --trials [1,2] --shots [1,5]"
  python low_shot.py --config "$(settings_of $dataset low_shot $name)" $inputs --select $configs/grids/low_shot.yaml \
    --out $out/validation/$name.json
  if [ -f "$(settings_of $dataset train_analogy_generator $name)" ]; then
    python low_shot.py --config "$(settings_of $dataset low_shot $name -generated)" $inputs --add.generator $out/$name/generator \
      --select $configs/grids/low_shot-generated.yaml --out $out/validation/${name}_generated.json
  fi
done
