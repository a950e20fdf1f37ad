#!/usr/bin/env bash
# Tables and report.html, with the map of the first seed's SCGM-G (else of the first method); methods are compared with coarse cross-entropy
# (else with each other), seed by seed.
source "$(dirname "$0")/common.sh"
part=$([ $classes = all ] && echo test || echo train)
case " $methods " in *" scgm_g "*) shown=scgm_g ;; *) shown=${methods%% *} ;; esac
case " $methods " in *" coarse "*) reference="--reference ${representation}_coarse" ;; *) reference="" ;; esac
shown=$out/scgm/${representation}_${shown}_seed${seeds%% *}
python parse_results.py --results $results $reference --out $out/report_scgm --data $out/data --mixture $shown/extractor --features $shown/features/$part.h5
