#!/usr/bin/env bash
# Images and split; superclasses come with the data set. CIFAR-100 and Omniglot share them with the other recipes.
source "$(dirname "$0")/common.sh"
python preprocessing.py $prepared ${DATA_ROOT:+--root "$DATA_ROOT"} --out $out/data
