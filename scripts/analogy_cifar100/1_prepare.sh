#!/usr/bin/env bash
# Images, split and draws: those of scripts/shrink_hallucinate, so that both recipes are judged on the same classes and shots.
source "$(dirname "$0")/common.sh"
bash scripts/shrink_hallucinate/1_prepare.sh cifar100
