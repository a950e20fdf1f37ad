#!/usr/bin/env bash
# The whole recipe on one data set: cifar100 or omniglot (two cores), living17, nonliving26, entity13, entity30 or tiered_imagenet (GPUs). What
# stands is skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/scgm/[1-5]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
