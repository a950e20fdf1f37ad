#!/usr/bin/env bash
# A classifier of the base classes, and features of all images: what GANs are judged by, and what samples are to help. Three copies of each image
# with the random changes of the training are what samples are compared with.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  folder=$out/seed$seed/$representation
  python train_extractor.py --config $configs/train_extractor-$dataset-$representation.yaml $precision --seed $seed --data $out/seed$seed/data --out $folder/extractor
  python save_features.py --extractor $folder/extractor --data $out/seed$seed/data $copies --out $folder/features
done
