#!/usr/bin/env bash
# Images, the class split of each seed, and shots: those of trial 1 are the published ones (EMNIST: of its balanced split).
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  python preprocessing.py --dataset $dataset ${DATA_ROOT:+--root "$DATA_ROOT"} $max_per_class $image_size --dataset.max_shots $max_shots --seed $seed --out $out/seed$seed/data
done
