#!/usr/bin/env bash
# Pages and figures of the results book. Data sets as arguments: their results below outputs/ first replace the numbers in docs/results/.
source "$(dirname "$0")/environment.sh"
collect() { python benchmarks/book.py collect --name "$@"; }
for dataset in "$@"; do
  case $dataset in
    glyphs) collect glyphs --results outputs/glyphs/results ;;
    cifar100 | omniglot) collect $dataset --results outputs/$dataset/results_one_shot ;;
    emnist) collect emnist --results outputs/emnist_fs/results_few_shot_gan ;;
    cifar_fs | fc100 | omniglot_vinyals) collect episodes-$dataset --episodes --results outputs/$dataset/results ;;
    *) echo "usage: bash $0 [glyphs] [cifar100] [omniglot] [emnist] [cifar_fs] [fc100] [omniglot_vinyals]" >&2 && exit 2 ;;
  esac
done
python benchmarks/book.py render
python scripts/pictures.py
