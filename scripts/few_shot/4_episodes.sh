#!/usr/bin/env bash
# 1000 tasks of the test classes for every method: balanced queries, queries that are not (Dirichlet), tasks within one superclass.
source "$(dirname "$0")/common.sh"
for n_way in $n_ways; do
  for kind in $kinds; do
    case $kind in
      balanced) sampling="" ;;
      # A character has 20 drawings, so one class may get all queries of a 5-way task only if these are few.
      dirichlet) [ $dataset = omniglot_vinyals ] && sampling="--dirichlet 2 --n_queries $((n_way == 5 ? 3 : 2))" || sampling="--dirichlet 2" ;;
      within_superclass) sampling="--within_superclass true" ;;
    esac
    for method in "$configs"/episodes-*.yaml; do
      case $method in *tim.yaml) continue ;; esac # a thousand steps a task: hours in 20-way tasks
      name=$(basename "$method" .yaml)
      python episodes.py --config "$method" --features $out/$representation/features/train.h5 --split $out/data/split.json \
        --n_way $n_way $sampling --out "$out/results/${representation}_${n_way}way_${kind}_${name#episodes-}.json"
    done
  done
done
