#!/usr/bin/env bash
# What is to be measured on a GPU, in parts of a few minutes. Each part stops at its limit. Run again, it continues.
usage() {
  cat >&2 <<'END'
usage: bash benchmarks/gpu.sh PART

  A   3 minutes   every stage: CPU against GPU within a tolerance; the speeds that docs/results/benchmarks.md quotes
  B   5 minutes   CIFAR-100: SCGM-G beside coarse cross-entropy, full-width ResNet-12, a shortened recipe
  C   4 minutes   CIFAR-FS: full-width ResNet-12
  D   4 minutes   FC100: full-width ResNet-12
  E   5 minutes   CIFAR-100: ANCOR, full-width ResNet-12, the recipe of B
  F   5 minutes   CIFAR-100: pre-training of the few-shot GAN

DATA_ROOT=DIR   where cifar-100-python is (B to F)
TINY=1          an epoch or a few steps at a fraction of the width, to try the commands on a CPU
OUT=DIR         where the outputs go, from the repository on (default: outputs/gpu)
END
  exit 2
}
part=${1:-}
case $part in A) minutes=3 ;; C | D) minutes=4 ;; B | E | F) minutes=5 ;; *) usage ;; esac
source "$(dirname "$0")/../scripts/environment.sh"
out=${OUT:-outputs/gpu}
end=$((SECONDS + 60 * minutes))

# Run a command until the limit of the part. A training that is stopped keeps its checkpoint.
run() {
  local left=$((end - SECONDS))
  [ $left -gt 0 ] || { echo "part $part: the limit of $minutes minutes is reached; the same command continues" && exit 1; }
  local code=0
  timeout --signal INT --kill-after 20 $left "$@" || code=$?
  if [ $code = 124 ] || [ $code = 137 ]; then
    echo "part $part: stopped at the limit of $minutes minutes; the same command continues" && exit 1
  fi
  return $code
}
# Images of a data set.
prepare() {
  run python preprocessing.py "$@" ${DATA_ROOT:+--root "$DATA_ROOT"}
}
fp="--precision bf16-mixed"
tiny=""
[ -z "${TINY:-}" ] || { fp="" && tiny="--epochs 1 --model.width 0.05"; }

case $part in
  A)
    run python benchmarks/gpu.py --out $out/stages
    if [ -n "${TINY:-}" ]; then size="--rounds 1 --n_steps 1"; else size="--precision bf16-mixed --batch_size 512"; fi
    run python benchmarks/training.py --accelerator auto $size
    run python benchmarks/devices.py ${TINY:+--size 0.01}
    ;;
  B | E)
    prepare --config configs/shrink_hallucinate/preprocessing-cifar100.yaml --out $out/cifar100/data
    methods="coarse scgm_g"
    [ $part = E ] && methods=ancor
    for method in $methods; do
      folder=$out/cifar100/resnet12_$method
      run python train_scgm.py --config configs/scgm/train_scgm-cifar100-resnet12_annealed.yaml --method $method --epochs 30 --schedule.n_cycles 1 \
        $fp $tiny --data $out/cifar100/data --out $folder/extractor
      run python save_features.py --extractor $folder/extractor --data $out/cifar100/data --out $folder/features
      run python episodes.py --config configs/scgm/episodes.yaml --features $folder/features/test.h5 --split $out/cifar100/data/split.json \
        --classes all --n_way 5 --n_shots "[1]" --out $out/results/cifar100_$method.json
    done
    ;;
  C | D)
    dataset=cifar_fs
    [ $part = D ] && dataset=fc100
    folder=$out/$dataset/resnet12
    prepare --dataset $dataset --out $out/$dataset/data
    run python train_extractor.py --config configs/few_shot/train_extractor-$dataset-resnet12.yaml $fp $tiny --data $out/$dataset/data \
      --out $folder/extractor
    run python save_features.py --views mirror --extractor $folder/extractor --data $out/$dataset/data --out $folder/features
    for method in nearest_mean_cl2n logistic_regression pt_map; do
      run python episodes.py --config configs/few_shot/episodes-$method.yaml --features $folder/features/train.h5 \
        --split $out/$dataset/data/split.json --n_way 5 --out $out/results/${dataset}_$method.json
    done
    ;;
  F)
    prepare --dataset cifar100_fs --out $out/cifar100_fs/data
    folder=$out/cifar100_fs
    run python train_extractor.py --config configs/few_shot_gan/train_extractor-cifar100_fs-resnet18.yaml $fp $tiny --data $folder/data \
      --out $folder/resnet18/extractor
    run python train_gan.py pretrain --config configs/few_shot_gan/train_gan-cifar100_fs-pretrain.yaml $fp ${TINY:+--steps 5 --ngf 16 --ndf 4} \
      --data $folder/data --extractor $folder/resnet18/extractor --out $folder/gan
    ;;
esac
if [ -d $out/results ]; then python parse_results.py --results $out/results --out $out/report; fi
