#!/usr/bin/env bash
# Classifiers of base and novel classes. The best one for each n is chosen on the validation setup, without and with generated features.
source "$(dirname "$0")/common.sh"
low_shot() {
  python low_shot.py --config $configs/low_shot.yaml $inputs --draws "$out/data/draws.json" --shots "$shots" "$@"
}
low_shot --out "$results/cosine.json"
low_shot --select $configs/grids/low_shot.yaml --select.criterion top1_novel_base --select.per_shot --out "$results/best.json"
if [ -d "$out/$name/generator" ]; then
  low_shot --select $configs/grids/low_shot.yaml --select.criterion top1_novel_base --select.per_shot \
    --add.generator "$out/$name/generator" --out "$results/best_generated.json"
  low_shot --select $configs/grids/low_shot.yaml --select.criterion top1_novel_base --select.per_shot --add repetition \
    --out "$results/best_repeated.json" # the control: copies instead of generated features
fi
