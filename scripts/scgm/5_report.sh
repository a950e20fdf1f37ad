#!/usr/bin/env bash
# Tables and report.html, with the map of the first seed's SCGM-G.
source "$(dirname "$0")/common.sh"
part=$([ $classes = all ] && echo test || echo train)
shown=$out/scgm/${representation}_scgm_g_seed${seeds%% *}
python parse_results.py --results $results --out $out/report_scgm --data $out/data --mixture $shown/extractor --features $shown/features/$part.h5
