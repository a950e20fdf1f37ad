#!/usr/bin/env bash
# The grid that the low-shot settings of this recipe were chosen from: on the validation setup, two trials, n = 1 and 5. The last
# lines are its tables; what was chosen stands in configs/shrink_hallucinate/low_shot-<data set>-*.yaml.
source "$(dirname "$0")/common.sh"
for name in $representations; do
  first="python low_shot.py --config $configs/low_shot-$dataset-$name.yaml --setup validation --trials [1,2] --shots [1,5]
    --train $out/$name/features/train.h5 --test $out/$name/features/test.h5 --split $out/data/split.json --draws $out/data/draws.json"
  grid=$out/validation/$name
  for rate in ${RATES:-0.1 1}; do
    for decay in ${DECAYS:-0.01 0.001}; do
      $first --sgd.lr "$rate" --sgd.weight_decay "$decay" --method "lr $rate, decay $decay" --out "$grid/${rate}_$decay.json"
      if [ -d $out/$name/generator ]; then
        for rows in ${ROWS:-5 20}; do
          $first --sgd.lr "$rate" --sgd.weight_decay "$decay" --generator $out/$name/generator --max_per_label "$rows" \
            --method "lr $rate, decay $decay, $rows rows" --out "$grid/${rate}_${decay}_$rows.json"
        done
      fi
    done
  done
  python parse_results.py --results "$grid" --out $out/validation_report/"$name" --metric top1_all
done
