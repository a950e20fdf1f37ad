#!/usr/bin/env bash
# Tables, curves, accuracy over steps, and report.html.
source "$(dirname "$0")/common.sh"
python parse_results.py --results $results/test --out ${results/results/report} --data $out/data --features $out/$name/features/test.h5
