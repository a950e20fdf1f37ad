#!/usr/bin/env bash
# The whole recipe on one data set: imagenet (a GPU machine, days), cifar100 or omniglot (two cores, about two hours). What stands is skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/shrink_hallucinate/[1-8]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
