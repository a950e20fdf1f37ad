#!/usr/bin/env bash
# Images and the published split: training classes are base, validation and test classes the novel classes of the two setups.
source "$(dirname "$0")/common.sh"
python preprocessing.py --dataset $dataset ${DATA_ROOT:+--root "$DATA_ROOT"} --out $out/data
