#!/usr/bin/env bash
# The whole recipe on one data set: emnist_fs or omniglot_fs (two cores), or cifar100_fs (a GPU). What stands is skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/few_shot_gan/[1-8]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
