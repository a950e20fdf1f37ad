#!/usr/bin/env bash
# Diffusion over a graph of all training photos; those of novel classes that are no shots have no label. Alone, and fused with a classifier.
source "$(dirname "$0")/common.sh"
for setup in validation test; do
  python build_graph.py complete $inputs --setup $setup --unlabelled novel --out "$out/$name/graph-$setup.h5"
  python low_shot.py --config $configs/low_shot.yaml $inputs --draws "$out/data/draws.json" --shots "$shots" --setup $setup \
    --scores "$out/$name/scores-$setup.h5" --out "$out/$name/scores-$setup.json"
done
diffusion() {
  python diffusion.py $inputs --draws "$out/data/draws.json" --shots "$shots" --graph "$out/$name/graph-{setup}.h5" \
    --select.criterion top1_novel_base --select.per_shot "$@"
}
diffusion --select $configs/grids/diffusion.yaml --out "$results/diffusion.json"
diffusion --select $configs/grids/fusion.yaml --fuse "$out/$name/scores-{setup}.h5" --out "$results/fusion.json"
