#!/usr/bin/env bash
# Tables over class splits, and sheets of the first seed's last kind of GAN.
source "$(dirname "$0")/common.sh"
first=$out/seed${seeds%% *}
python parse_results.py --results $results --out $out/report_few_shot_gan --data $first/data \
  --gan $first/gan/${kinds##* }$network/trial${trials%% *}_k${shots%% *}
