#!/usr/bin/env bash
# Trains the extractors of docs/leaderboard.md that share one network and one budget, and prints their rows.
usage() {
  cat >&2 <<'END'
usage: bash benchmarks/leaderboard.sh PART

  cifar100       plain and SGM with three seeds, batch-SGM and L2 with one; and the quarter-width ResNet-10 of the default recipe
  few_shot       CIFAR-FS, FC100 and Omniglot (the split of Vinyals et al.)
  omniglot       the background alphabets with rotations
  emnist         37 base classes, at most 1600 images of each
  superclasses   CIFAR-100's superclasses: coarse cross-entropy and SCGM-G with three seeds, ANCOR and SCGM-A with one

DATA_ROOT=DIR   where the images are (default: data/, with a download)
PRECISION       bf16-mixed is faster on GPUs and with AMX or AVX512_BF16, slower on other processors (default: 32-true)

An extractor takes about 10 minutes with PRECISION=bf16-mixed where it is fast; in float32 up to 40, and ANCOR and SCGM-A
longest. Run again, it continues.
END
  exit 2
}
part=${1:-}
case $part in cifar100 | few_shot | omniglot | emnist | superclasses) ;; *) usage ;; esac
source "$(dirname "$0")/../scripts/environment.sh"

case $part in
  cifar100 | omniglot)
    names=airbench_plain data=outputs/$part/data_rotated
    if [ $part = cifar100 ]; then
      data=outputs/$part/data
      names="resnet10_plain resnet10_sgm airbench_plain airbench_plain_seed1 airbench_plain_seed2"
      names+=" airbench_sgm airbench_sgm_seed1 airbench_sgm_seed2 airbench_batchsgm airbench_l2"
    fi
    export REPRESENTATIONS=$names
    bash scripts/shrink_hallucinate/1_prepare.sh $part
    bash scripts/shrink_hallucinate/2_train_extractors.sh $part
    for name in $names; do
      python benchmarks/leaderboard.py --name "$name" --extractors outputs/$part/$name/extractor --data $data
    done
    ;;
  few_shot)
    export REPRESENTATION=airbench
    for dataset in cifar_fs fc100 omniglot_vinyals; do
      for step in 1_prepare 2_train_extractor 3_save_features; do bash scripts/few_shot/$step.sh $dataset; done
      folder=outputs/$dataset n_way=5
      case $dataset in omniglot*) n_way=20 ;; esac
      result=$folder/results/airbench_${n_way}way_balanced_nearest_mean_cl2n.json
      python episodes.py --config configs/few_shot/episodes-nearest_mean_cl2n.yaml --features $folder/airbench/features/train.h5 \
        --split $folder/data/split.json --n_way $n_way --out $result
      python benchmarks/leaderboard.py --name $dataset --extractors $folder/airbench/extractor --results $result
    done
    ;;
  emnist)
    export REPRESENTATION=airbench SEEDS=0 MAX_PER_CLASS=1600
    for step in 1_prepare 2_train_extractor; do bash scripts/few_shot_gan/$step.sh emnist_fs; done
    python benchmarks/leaderboard.py --name emnist --extractors outputs/emnist_fs_airbench/seed0/airbench/extractor --data outputs/emnist_fs_airbench/seed0/data
    ;;
  superclasses)
    export REPRESENTATION=airbench
    steps() { for step in "$@"; do bash "scripts/scgm/$step.sh" cifar100; done; }
    METHODS="coarse scgm_g" steps 1_prepare 2_train 3_save_features 4_episodes
    METHODS="ancor scgm_a" SEEDS=0 steps 2_train 3_save_features 4_episodes
    METHODS="coarse scgm_g" steps 5_report
    for name in {coarse,scgm_g}_seed{0,1,2} {ancor,scgm_a}_seed0; do
      folder=outputs/cifar100/results_scgm/airbench_$name
      python benchmarks/leaderboard.py --name "$name" --extractors outputs/cifar100/scgm/airbench_$name/extractor \
        --results ${folder}_5way.json ${folder}_allway.json ${folder}_intra.json
    done
    ;;
esac
