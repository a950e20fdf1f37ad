#!/usr/bin/env bash
# The best features of CIFAR-FS that a budget of operations buys, and their row of docs/leaderboard.md: three networks, joined.
case ${1:-} in
  short) epochs=8 rotations="0 0.5 0" ;;
  long) epochs=20 rotations="0 0.5 0.5" ;;
  *)
    cat >&2 <<'END'
usage: bash scripts/few_shot/speedrun.sh short|long

  short   4e14 operations: 35 minutes on two cores with AVX-512, 22 with AVX512_BF16 and PRECISION=bf16-mixed
  long    1e15 operations: two and a half times as long

DATA_ROOT=DIR   where the images are (default: data/, with a download of 170 MB)
PRECISION       of training: bf16-mixed is faster on GPUs and on processors with AMX or AVX512_BF16 (default: 32-true)
SETUP           validation: judge on the validation classes, to try something else (default: test)

Writes outputs/cifar_fs/speedrun_short/ and prints a row of docs/leaderboard.md.
END
    exit 2
    ;;
esac
budget=$1
set -- cifar_fs
REPRESENTATION=speedrun
source "$(dirname "$0")/common.sh"
bash scripts/few_shot/1_prepare.sh cifar_fs
folder=$out/speedrun_$budget
members=()
for rotation in $rotations; do
  seed=${#members[@]}
  members+=("$folder/seed$seed/extractor")
  python train_extractor.py --config $configs/train_extractor-cifar_fs-speedrun.yaml --epochs $epochs --rotation "$rotation" --seed $seed \
    --devices "${DEVICES:-1}" $precision --data $out/data --out "${members[-1]}"
done
python join_extractors.py --extractors "${members[@]}" --out $folder/extractor
python save_features.py $mirror $precision --extractor $folder/extractor --data $out/data --out $folder/features
results=()
for method in nearest_mean_cl2n logistic_regression pt_map; do
  results+=("$out/results/speedrun_${budget}_5way_balanced${SETUP:+_$SETUP}_$method.json")
  python episodes.py --config $configs/episodes-$method.yaml --features $folder/features/train.h5 --split $out/data/split.json \
    --n_way 5 ${SETUP:+--setup $SETUP} --out "${results[-1]}"
done
python benchmarks/leaderboard.py --name "$budget" --extractors "${members[@]}" --results "${results[@]}"
