#!/usr/bin/env bash
# The whole recipe on one data set. Finished stages are skipped; without an argument it prints what there is.
source "$(dirname "$0")/common.sh"
echo "one_shot on $dataset: $takes. Ctrl-C stops it, and the same command continues."
for stage in scripts/one_shot/[1-9]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
