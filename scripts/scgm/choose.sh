#!/usr/bin/env bash
# Compares settings of the mixture on a tenth of CIFAR-100's training images, which none of them learns from (test images stay unseen): tables in
# outputs/cifar100/report_scgm_validation-*, a folder for each coarse cross-entropy to compare with. What was chosen stands in configs/scgm/ (tau2
# for Omniglot too). A line takes six to twelve minutes on a core with AMX in bf16-mixed, half an hour on one without.
set -- cifar100
source "$(dirname "$0")/common.sh"
data=$out/data_validation
python preprocessing.py $prepared ${DATA_ROOT:+--root "$DATA_ROOT"} --dataset.validation_share 0.1 --out $data
while read -r name method changes; do
  folder=$out/scgm_validation/$name
  # shellcheck disable=SC2046 # words of a list
  python train_scgm.py $(configs_of $method) --method $method --holdout 0 $precision $changes --data $data --out $folder/extractor
  python save_features.py --config $configs/save_features-$settings.yaml $precision --extractor $folder/extractor --data $data --out $folder/features
  for kind in "5way --n_way 5 --n_episodes 400" "allway --n_way all --n_episodes 60" "intra --n_way all --within_superclass true --n_episodes 400"; do
    python episodes.py --config $configs/episodes.yaml --features $folder/features/test.h5 --split $data/split.json --classes all --n_shots "[1]" \
      ${kind#* } --out $out/results_scgm_validation/${name}_${kind%% *}.json
  done
done <<'CHANGES'
coarse coarse
coarse_rate0.05 coarse --lr 0.05
coarse_rate0.05_parts0.2 coarse --lr 0.05 --augment.crop_area 0.2
scgm_g scgm_g
scgm_g_tau2_1 scgm_g --method.tau2 1
scgm_g_tau0.2 scgm_g --method.tau 0.2
scgm_g_rate0.05 scgm_g --lr 0.05
scgm_g_rate0.05_tau0.05 scgm_g --lr 0.05 --method.tau 0.05
scgm_g_rate0.05_parts0.2 scgm_g --lr 0.05 --augment.crop_area 0.2
scgm_g_rate0.05_parts0.2_subclasses200 scgm_g --lr 0.05 --augment.crop_area 0.2 --method.n_subclasses 200
scgm_g_rate0.05_parts0.2_alpha0.25_clean scgm_g --lr 0.05 --augment.crop_area 0.2 --method.alpha 0.25 --method.e_step_view clean
scgm_g_rate0.05_parts0.2_alpha1_clean_every1 scgm_g --lr 0.05 --augment.crop_area 0.2 --method.alpha 1 --method.e_step_view clean --method.e_step_every 1
scgm_a_rate0.05_parts0.2_alpha1_clean scgm_a --lr 0.05 --augment.crop_area 0.2 --method.alpha 1 --method.e_step_view clean
CHANGES
for coarse in coarse coarse_rate0.05 coarse_rate0.05_parts0.2; do
  python parse_results.py --results $out/results_scgm_validation --reference $coarse --out $out/report_scgm_validation-$coarse
done
