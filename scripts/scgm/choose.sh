#!/usr/bin/env bash
# Compares settings of the mixture on a part of the training images that none of them learns from (test images stay unseen): a table of tasks in
# outputs/<data set>/report_scgm_validation. What was chosen stands in configs/scgm/. Ten minutes a line on a core.
source "$(dirname "$0")/common.sh"
[ $dataset = omniglot ] && share="0.5 --max_shots 5" tasks="--n_queries 4" || share=0.1 tasks=""
data=$out/data_validation
python preprocessing.py $prepared $data_root --validation_share $share --out $data
case $dataset in
  cifar100) parts="--augment.crop_area 0.2" ;; # as published
  *) parts="" ;;
esac
changes() {
  echo "coarse --method coarse"
  echo "scgm_g"
  echo "tau0.05 --tau 0.05"
  echo "coarse_published_parts --method coarse $parts"
  echo "published_parts $parts"
  echo "tau2_1 $parts --tau2 1"
  echo "alpha0.25 $parts --alpha 0.25 --e_step_view clean"
  echo "alpha1 $parts --alpha 1 --e_step_view clean --e_step_every 1"
  echo "subclasses200 $parts --n_subclasses 200"
  echo "scgm_a $parts --method scgm_a --alpha 1 --e_step_view clean"
}
while read -r name changes; do
  folder=$out/scgm_validation/$name
  python train_scgm.py --config $configs/train_scgm-$settings-$representation.yaml --holdout 0 $precision $changes --data $data --out $folder/extractor
  python save_features.py --config $configs/save_features-$settings.yaml --extractor $folder/extractor --data $data --out $folder/features
  for kind in "5way --n_way 5 --n_episodes 400" "allway --n_way all --n_episodes 60" "intra --n_way all --within_superclass true --n_episodes 400"; do
    # shellcheck disable=SC2086
    python episodes.py --config $configs/episodes.yaml --features $folder/features/test.h5 --split $data/split.json --classes all --n_shots "[1]" $tasks \
      ${kind#* } --out $out/results_scgm_validation/${name}_${kind%% *}.json
  done
done < <(changes)
python parse_results.py --results $out/results_scgm_validation --reference coarse --out $out/report_scgm_validation
