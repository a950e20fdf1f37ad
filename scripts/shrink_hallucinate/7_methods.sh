#!/usr/bin/env bash
# Other classifiers on the first representation: settings chosen on the validation setup, results on the test setup. PT-MAP (slow) has the
# paper's settings, logistic regression those of the linear classifier.
source "$(dirname "$0")/common.sh"
name=${representations%% *}
inputs="--train $out/$name/features/train.h5 --test $out/$name/features/test.h5 --split $out/data/split.json --draws $out/data/draws.json"
shots=$(grep '^shots:' "$(settings_of $dataset low_shot $name)" || echo "shots: [1, 2, 5, 10, 20]")
for classifier in nearest_mean cosine laplacian_shot prototype_refinement; do
  python low_shot.py $inputs --classifier $classifier --shots "${shots#shots: }" --select $configs/grids/$classifier.yaml \
    --out $out/results/${name}_$classifier.json
done
python low_shot.py $inputs --classifier pt_map --shots "${shots#shots: }" --out $out/results/${name}_pt_map.json
python low_shot.py $inputs --classifier logistic_regression --classifier.tolerance 0.0001 --shots "${shots#shots: }" \
  --out $out/results/${name}_logistic_regression.json
python matching_network.py train --config $configs/matching_network-$dataset-train.yaml --features $out/$name/features/train.h5 \
  --split $out/data/split.json --out $out/$name/matching
python matching_network.py test --config $configs/matching_network-$dataset-test.yaml --model $out/$name/matching $inputs \
  --shots "${shots#shots: }" --out $out/results/${name}_matching_network.json
