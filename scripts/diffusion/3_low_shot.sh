#!/usr/bin/env bash
# The linear classifier on the same shots, with its scores kept for fusion: in both setups, with the settings of shrink_hallucinate.
source "$(dirname "$0")/common.sh"
for setup in validation test; do
  python low_shot.py --config "$low_shot_config" $inputs --draws $out/data/draws.json --setup $setup \
    --scores $graphs/scores-$setup.h5 --out $results/$setup/linear.json
done
