#!/usr/bin/env bash
# Tables, figures and a page. Its numbers are those of half of the classes; the other half chose the settings.
source "$(dirname "$0")/common.sh"
python parse_results.py --results "$results" --out "$out/report" --data "$out/data" --features "$features/test.h5"
