#!/usr/bin/env bash
# Samples as images: the classifier of the base classes is fine-tuned on the shots, alone and with a hundred samples of each class, and judged
# by its own head. Without samples every epoch shows the shots so often that it has as many steps or a few more.
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  own=$out/seed$seed
  # The extractor fine-tuned as NAME on K shots of TRIAL, with more arguments for samples: finetune NAME TRIAL K ...
  finetune() {
    local folder=$own/finetuned/$1/trial$2_k$3
    python finetune_extractor.py --config $configs/finetune_extractor-$dataset.yaml --seed $seed --data $own/data --weights $own/$representation/extractor/model.pt \
      --shots "$3" --trial "$2" "${@:4}" --out "$folder/extractor"
    python save_features.py --extractor "$folder/extractor" --data $own/data --out "$folder/features"
    python low_shot.py --classifier own_head --classifier.extractor "$folder/extractor" --train "$folder/features/train.h5" --test "$folder/features/test.h5" \
      --split $own/data/split.json --draws $own/data/draws.json --shots "[$3]" --trials "[$2]" --extractor $representation --name "own head, $1" \
      --out "$results/seed$seed/own_head-$1-trial$2_k$3.json"
  }
  for trial in $trials; do
    for k in $shots; do
      finetune shots "$trial" "$k" --repeat_shots $(((99 + 2 * k) / k))
      for kind in $kinds; do
        samples=$own/samples/$kind$network/trial${trial}_k$k/hundred.h5
        python sample_gan.py --gan $own/gan/$kind$network/trial${trial}_k$k --split $own/data/split.json --n_per_class 100 --seed $seed --out "$samples"
        finetune "samples-$kind$network" "$trial" "$k" --samples "$samples"
      done
    done
  done
done
