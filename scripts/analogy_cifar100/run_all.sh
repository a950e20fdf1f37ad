#!/usr/bin/env bash
# The whole recipe on one data set. Finished stages are skipped; without an argument it prints what there is.
source "$(dirname "$0")/common.sh"
echo "analogy_cifar100 on $size: $takes. Ctrl-C stops it, and the same command continues."
for stage in scripts/analogy_cifar100/[1-9]_*.sh; do
  echo "== bash $stage $size"
  bash "$stage" "$size"
done
