#!/usr/bin/env bash
# Tables, curves and report.html.
source "$(dirname "$0")/common.sh"
python parse_results.py --results $results --out outputs/cifar100/report_$name --data $data --features $out/features/test.h5
