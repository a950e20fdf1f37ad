#!/usr/bin/env bash
# The graph of each setup: without unlabelled images, and with those whose labels are withheld or with the background.
source "$(dirname "$0")/common.sh"
if [ "$dataset" = imagenet ]; then
  python build_graph.py background --config $configs/build_graph-background.yaml --features $yfcc/$name/features/train.h5 \
    --out $yfcc/$name/background.h5
fi
for unlabelled in $images; do
  choice="--unlabelled $unlabelled"
  [ $unlabelled = background ] && choice="--background $yfcc/$name/background.h5"
  for setup in validation test; do
    python build_graph.py complete $inputs --setup $setup $choice --out $graphs/$unlabelled-$setup.h5
  done
done
