#!/usr/bin/env bash
# Every method with every seed, on superclasses only. DEVICES=8 trains on eight GPUs of this machine; METHODS="scgm_g" SEEDS="0" trains one;
# PRECISION=bf16-mixed is faster where the processor has AMX or AVX512_BF16, and many times slower where it has neither (docs/LOG.md).
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  for method in $methods; do
    # shellcheck disable=SC2046 # words of a list
    python train_scgm.py $(configs_of $method) --method $method --seed $seed --devices "${DEVICES:-1}" $precision \
      --data $out/data --out $out/scgm/${representation}_${method}_seed$seed/extractor
  done
done
