#!/usr/bin/env bash
# Samples of every GAN, their features, and their scores: fine-tuned and pre-trained ones on the novel classes, pre-trained ones on the base classes too
# (not on the novel ones if they know classes by their features).
source "$(dirname "$0")/common.sh"
for seed in $seeds; do
  split=$out/seed$seed/data/split.json
  judged=$out/seed$seed/$judge/features
  [ -z "$judge" ] || python save_features.py --timm "$judge" --timm.resize true --data $out/seed$seed/data --out "$judged"
  features=$out/seed$seed/$representation/features
  # Samples in FOLDER of the GAN in folder GAN, of CLASSES, scored as NAME against each of REFERENCES: sample FOLDER GAN CLASSES NAME REFERENCES
  sample() {
    local n=$n_per_class
    [ "$3" = base ] && n=$n_per_base_class
    python sample_gan.py --gan "$2" --split $split --n_per_class "$n" --classes "$3" --seed $seed --out "$1/samples.h5"
    python save_features.py --extractor $out/seed$seed/$representation/extractor --data "$1/samples.h5" --out "$1"
    [ -z "$judge" ] || python save_features.py --timm "$judge" --timm.resize true --data "$1/samples.h5" --out "$1/$judge"
    for reference in $5; do
      if [ -n "$judge" ]; then # FID and the others by a network that has seen neither
        python score_samples.py --samples "$1/$judge/train.h5" --train "$judged/train.h5" --test "$judged/test.h5" --split $split \
          --draws $out/seed$seed/data/draws.json --reference "$reference" --name "$4, by $judge" \
          --out "$results/seed$seed/scores-$(echo "${1#"$out/seed$seed/samples/"}" | tr / -)-$judge-$reference.json"
      fi
      python score_samples.py --samples "$1/train.h5" --train $features/train.h5 --test $features/test.h5 --split $split \
        --draws $out/seed$seed/data/draws.json --reference "$reference" --name "$4" --out "$results/seed$seed/scores-$(echo "${1#"$out/seed$seed/samples/"}" | tr / -)-$reference.json"
    done
  }
  pretrained=$out/seed$seed/gan/pretrained$network
  sample $out/seed$seed/samples/pretrained$network-base $pretrained base "pretrained$network" base
  [ -n "${by_features:-}" ] || sample $out/seed$seed/samples/pretrained$network-novel $pretrained novel "pretrained$network" "validation test"
  for kind in $kinds; do
    for trial in $trials; do
      for k in $shots; do
        sample $out/seed$seed/samples/$kind$network/trial${trial}_k$k $out/seed$seed/gan/$kind$network/trial${trial}_k$k novel "$kind$network, k = $k" "validation test"
      done
    done
  done
done
