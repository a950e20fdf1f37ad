#!/usr/bin/env bash
# The whole recipe on one published split. What stands is skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/few_shot/[1-5]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
