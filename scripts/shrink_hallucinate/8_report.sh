#!/usr/bin/env bash
# Tables, curves and report.html of everything in the results folder.
source "$(dirname "$0")/common.sh"
first=${representations%% *}
python parse_results.py --results $out/results --out $out/report --data $out/data --features $out/$first/features/test.h5
