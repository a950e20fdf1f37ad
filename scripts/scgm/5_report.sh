#!/usr/bin/env bash
# Tables and report.html, with the map of the first seed's SCGM-G; methods are compared with coarse cross-entropy, seed by seed.
source "$(dirname "$0")/common.sh"
part=$([ $classes = all ] && echo test || echo train)
shown=$out/scgm/${representation}_scgm_g_seed${seeds%% *}
case " $methods " in *" coarse "*) reference="--reference ${representation}_coarse" ;; *) reference="" ;; esac
python parse_results.py --results $results $reference --out $out/report_scgm --data $out/data --mixture $shown/extractor --features $shown/features/$part.h5
