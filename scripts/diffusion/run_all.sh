#!/usr/bin/env bash
# The whole recipe on one data set: imagenet (a GPU machine, and the images of YFCC100M), cifar100 or omniglot (two cores). What stands is
# skipped.
source "$(dirname "$0")/common.sh"
for stage in scripts/diffusion/[1-6]_*.sh; do
  echo "== bash $stage $dataset"
  bash "$stage" "$dataset"
done
