#!/usr/bin/env bash
# Diffusion, alone and fused with the linear classifier. Steps (and the weight of fusion) are chosen for every n on the validation setup.
# Several processes share the classes: LAUNCH="torchrun --nproc-per-node 8" bash scripts/diffusion/4_diffusion.sh imagenet
source "$(dirname "$0")/common.sh"
shots=$(grep '^shots:' "$low_shot_config" || echo "shots: [1, 2, 5, 10, 20]")
for unlabelled in $images; do
  diffusion() {
    ${LAUNCH:-python} diffusion.py $inputs --draws $out/data/draws.json --graph "$graphs/$unlabelled-{setup}.h5" --select.per_shot "$@"
  }
  diffusion --shots "${shots#shots: }" --select $configs/grids/steps-$dataset.yaml --history 10 --out $results/test/diffusion_$unlabelled.json
  diffusion --shots "${shots#shots: }" --select $configs/grids/fusion-$dataset.yaml --fuse "$graphs/scores-{setup}.h5" \
    --out $results/test/fusion_$unlabelled.json
done
