#!/usr/bin/env bash
# The whole chain on the embedded data set `glyphs`: split, SGM extractor, features, quadruplets, generator, low-shot benchmark with
# and without generated features, diffusion, report. 2 to 5 minutes on two cores; a second run skips what exists.
source "$(dirname "$0")/environment.sh"
out=outputs/glyphs
configs=configs/quickstart

python preprocessing.py --dataset glyphs --out $out/data
python train_extractor.py --config $configs/train_extractor.yaml --data $out/data --out $out/conv4_sgm/extractor
python save_features.py --extractor $out/conv4_sgm/extractor --data $out/data --out $out/conv4_sgm/features
python make_quadruplet.py --features $out/conv4_sgm/features/train.h5 --split $out/data/split.json \
  --out $out/conv4_sgm/quadruplets.h5 --n_clusters 10
python train_analogy_generator.py --config $configs/train_analogy_generator.yaml --quadruplets $out/conv4_sgm/quadruplets.h5 \
  --extractor $out/conv4_sgm/extractor --out $out/conv4_sgm/generator

inputs="--train $out/conv4_sgm/features/train.h5 --test $out/conv4_sgm/features/test.h5 --split $out/data/split.json"
python low_shot.py --config $configs/low_shot.yaml $inputs --draws $out/data/draws.json --out $out/results/conv4_sgm.json
# The generator fills each novel class up to 5 rows (as published), so the results with it are the same from n = 5 on.
python low_shot.py --config $configs/low_shot.yaml $inputs --draws $out/data/draws.json --out $out/results/conv4_sgm_generated.json \
  --add.generator $out/conv4_sgm/generator --add.generator.max_per_label 5

# Diffusion over a graph of all training images; those of novel classes other than the shots have no label.
for setup in validation test; do
  python build_graph.py complete $inputs --setup $setup --unlabelled novel --out $out/conv4_sgm/graph-$setup.h5
done
python diffusion.py $inputs --draws $out/data/draws.json --graph "$out/conv4_sgm/graph-{setup}.h5" \
  --select $configs/grids/diffusion.yaml --select.per_shot --out $out/results/conv4_sgm_diffusion.json

python parse_results.py --results $out/results --out $out/report --data $out/data --features $out/conv4_sgm/features/test.h5
