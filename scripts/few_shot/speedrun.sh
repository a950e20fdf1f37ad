#!/usr/bin/env bash
# Trains two or three networks for a budget of operations, joins them, and prints their row for docs/leaderboard.md.
budget=${2:-}
case ${SETUP:-test} in test | validation) ;; *) echo "SETUP=$SETUP: test or validation is expected" >&2 && exit 2 ;; esac
case ${1:-}-$budget in
  cifar_fs-short | fc100-short) member=cifar-speedrun epochs=8 rotation_weights="0 0.5 0" ;;
  cifar_fs-long | fc100-long) member=cifar-speedrun epochs=20 rotation_weights="0 0.5 0.5" ;;
  omniglot_vinyals-short) member=omniglot_vinyals-airbench epochs=8 rotation_weights="0 0" ;; # rotated characters are classes already
  *)
    cat >&2 <<'END'
usage: bash scripts/few_shot/speedrun.sh SPLIT BUDGET

  cifar_fs, fc100    short: 4e14 operations; 31 minutes of training on two cores with AVX512_BF16 and
                     PRECISION=bf16-mixed, 78 with AVX2
                     long: 1e15 operations; 56 minutes with bf16-mixed
  omniglot_vinyals   short: 4e14 operations; 25 minutes with bf16-mixed

DATA_ROOT=DIR   where the images are (default: data/, with a download)
PRECISION       of training: bf16-mixed is faster on GPUs and with AMX or AVX512_BF16, slower on other processors (default: 32-true)
SETUP           validation: judge on the validation classes, to try something else (default: test)
DEVICES         number of GPUs for training (default: 1)

Writes outputs/SPLIT/speedrun_BUDGET/ and prints the row and its header.
END
    exit 2
    ;;
esac
source "$(dirname "$0")/common.sh"
bash scripts/few_shot/1_prepare.sh $dataset
folder=$out/speedrun_$budget held_out=""
# Omniglot's networks learn the validation characters too, unless these judge.
case $dataset-${SETUP:-} in omniglot*-validation) folder+=_validation held_out="--validation_classes false" ;; esac
members=()
for weight in $rotation_weights; do
  seed=${#members[@]}
  members+=("$folder/seed$seed/extractor")
  python train_extractor.py --config $configs/train_extractor-$member.yaml --epochs $epochs --rotation_weight "$weight" --seed $seed \
    $held_out --devices "${DEVICES:-1}" $precision --data $out/data --out "${members[-1]}"
done
python join_extractors.py --extractors "${members[@]}" --out $folder/extractor
python save_features.py $views $precision --extractor $folder/extractor --data $out/data --out $folder/features
n_way=${n_ways##* }
results=()
for method in nearest_mean_cl2n logistic_regression pt_map; do
  results+=("$out/results/speedrun_${budget}_${n_way}way_balanced${SETUP:+_$SETUP}_$method.json")
  python episodes.py --config $configs/episodes-$method.yaml --features $folder/features/train.h5 --split $out/data/split.json \
    --n_way "$n_way" ${SETUP:+--setup $SETUP} --out "${results[-1]}"
done
python benchmarks/leaderboard.py --name "$dataset-$budget${SETUP:+-$SETUP}" --extractors "${members[@]}" --results "${results[@]}"
