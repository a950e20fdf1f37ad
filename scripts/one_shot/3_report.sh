#!/usr/bin/env bash
# Tables, curves and report.html.
source "$(dirname "$0")/common.sh"
python parse_results.py --results $results --out ${results/results/report} --data $out/data --features $out/$name/features/test.h5
