#!/usr/bin/env bash
# VGG-16 with batch norm and the MLP head, on the base classes. WEIGHTS=FILE starts from torchvision's VGG-16, as size paper must.
source "$(dirname "$0")/common.sh"
if [ "$size" = paper ] && [ -z "${WEIGHTS:-}" ]; then
  echo "size paper starts from ImageNet kernels: WEIGHTS=vgg16-397923af.pth (torchvision's file) is missing" >&2 && exit 2
fi
python train_extractor.py --config $configs/train_extractor-$size.yaml --devices "${DEVICES:-1}" ${WEIGHTS:+--weights "$WEIGHTS"} \
  --data $data --out $out/extractor
