#!/usr/bin/env bash
# Tasks of classes that training never saw apart: 5-way, all-way, and all classes of one superclass.
source "$(dirname "$0")/common.sh"
# All-way tasks are large: fewer of them. Of a character there are ten test drawings, and of characters 1623: nearest means.
case $dataset in
  omniglot) n_queries="--n_queries 5" all_way="--method nearest_mean --n_shots [1] --n_episodes 100" n_clusters=1000 ;;
  *) n_queries="" all_way="--n_shots [1,5] --n_episodes 200" n_clusters=100 ;;
esac
part=$([ $classes = all ] && echo test || echo train)
for seed in $seeds; do
  for method in $methods; do
    name=${representation}_${method}_seed$seed
    for kind in 5way allway intra; do
      case $kind in
        5way) task="--n_way 5 --n_shots [1,5] --clustering $n_clusters" ;;
        allway) task="--n_way all $all_way" ;;
        intra) task="--n_way all --within_superclass true --n_shots [1,5]" ;;
      esac
      python episodes.py --config $configs/episodes.yaml --features $out/scgm/$name/features/$part.h5 --split $out/data/split.json \
        --classes $classes $n_queries $task --out $results/${name}_$kind.json
    done
  done
done
