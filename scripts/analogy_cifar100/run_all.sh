#!/usr/bin/env bash
# The whole recipe: two_cores (about 40 minutes) or paper (a GPU). What stands is skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/analogy_cifar100/[1-7]_*.sh; do
  echo "== bash $stage $size"
  bash "$stage" "$size"
done
