#!/usr/bin/env bash
# Classifiers of base and novel classes. The best one for each n is chosen on the validation setup: without generated features, with them, and
# with copies of the shots in their place (the control). The class means are the baseline.
source "$(dirname "$0")/common.sh"
low_shot() {
  python low_shot.py --config $configs/low_shot.yaml $inputs --draws "$out/data/draws.json" --shots "$shots" "$@"
}
choose="--select $configs/grids/low_shot.yaml --select.criterion top1_novel_base --select.per_shot"
low_shot --classifier nearest_mean --name "class means" --out "$results/nearest_mean.json"
low_shot $choose --name "best classifier" --out "$results/best.json"
if [ -d "$out/$name/generator" ]; then
  low_shot $choose --add.generator "$out/$name/generator" --name "best classifier + generator" --out "$results/best_generated.json"
  low_shot $choose --add repetition --name "best classifier + repetition" --out "$results/best_repeated.json"
fi
