#!/usr/bin/env bash
# Propagated labels as an addition: the images that diffusion labels most confidently join the shots of the linear classifier.
source "$(dirname "$0")/common.sh"
[ "$dataset" = imagenet ] && unlabelled=background background="--label.background $yfcc/$name/features/train.h5" || unlabelled=novel background=""
shots=$(grep '^shots:' "$low_shot_config" || echo "shots: [1, 2, 5, 10, 20]")
python diffusion.py $inputs --draws $out/data/draws.json --graph "$graphs/$unlabelled-{setup}.h5" --shots "${shots#shots: }" \
  --select $configs/grids/steps-$dataset.yaml --select.per_shot $background --label $graphs/propagated-$unlabelled.h5 \
  --out $graphs/propagated-$unlabelled.json
python low_shot.py --config "$low_shot_config" $inputs --draws $out/data/draws.json \
  --add.propagated $graphs/propagated-$unlabelled.h5 --out $results/test/linear_propagated.json
