"""The whole chain as users run it, twice. The second run does no work."""

import json

import pytest
from conftest import run_process, run_script


def chain(root, image_folder) -> list[list]:
    """The commands of the pipeline. The last word of each is its output."""
    data, first, gan = root / "data", root / "conv4", root / "gan"
    inputs = ["--train", first / "features" / "train.h5", "--test", first / "features" / "test.h5",
              "--split", data / "split.json", "--draws", data / "draws.json", "--shots", "[1,5]"]  # fmt: skip
    sgd = ["--classifier", "linear_sgd", "--classifier.n_steps", 60, "--classifier.batch_size", 40]
    small = ["--data", data, "--extractor", first / "extractor", "--batch_size", 8, "--steps", 4, "--score_every", 2,
             "--accelerator", "cpu"]  # fmt: skip
    return [
        ["preprocessing.py", "--dataset", "folder", "--root", image_folder, "--dataset.image_size", 16,
         "--dataset.test_per_class", 4, "--dataset.max_shots", 5, "--dataset.n_trials", 2,
         "--dataset.novel_fraction", 0.4, "--out", data],
        ["train_extractor.py", "--data", data, "--model", "Conv4", "--model.width", 0.25, "--epochs", 2,
         "--batch_size", 16, "--loss", "sgm", "--accelerator", "cpu", "--out", first / "extractor"],
        ["save_features.py", "--extractor", first / "extractor", "--data", data, "--accelerator", "cpu",
         "--out", first / "features"],
        ["make_quadruplet.py", "--features", first / "features" / "train.h5", "--split", data / "split.json",
         "--n_clusters", 4, "--out", first / "quadruplets.h5"],
        ["train_analogy_generator.py", "--quadruplets", first / "quadruplets.h5", "--n_steps", 50,
         "--extractor", first / "extractor", "--out", first / "generator"],
        ["low_shot.py", *inputs, *sgd, "--out", root / "results" / "plain.json"],
        ["low_shot.py", *inputs, *sgd, "--add.generator", first / "generator", "--add.generator.max_per_label", 5,
         "--out", root / "results" / "generated.json"],
        ["train_gan.py", "pretrain", *small, "--ngf", 16, "--ndf", 2, "--z_dim", 4, "--out", gan / "pretrained"],
        ["train_gan.py", "finetune", *small, "--gan", gan / "pretrained", "--k", 5, "--semi_supervised", "true",
         "--alpha", 1, "--out", gan / "tuned"],
        ["sample_gan.py", "--gan", gan / "tuned", "--split", data / "split.json", "--n_per_class", 10,
         "--out", gan / "samples.h5"],
        ["save_features.py", "--extractor", first / "extractor", "--data", gan / "samples.h5", "--accelerator", "cpu",
         "--out", gan / "samples"],
        ["score_samples.py", *inputs[:-2], "--samples", gan / "samples" / "train.h5", "--reference", "test",
         "--out", root / "results" / "scores.json"],
        ["low_shot.py", *inputs[:-2], "--shots", "[5]", "--trials", "[1]", "--classifier", "logistic_regression",
         "--add.samples", gan / "samples" / "train.h5", "--add.samples.per_shot", 2,
         "--out", root / "results" / "samples.json"],
        ["finetune_extractor.py", "--data", data, "--model", "Conv4", "--model.width", 0.25, "--epochs", 2,
         "--batch_size", 16, "--weights", first / "extractor" / "model.pt", "--shots", 5,
         "--samples", gan / "samples.h5", "--trained", "[classifier]", "--mixup", "beta", "--accelerator", "cpu",
         "--out", root / "tuned" / "extractor"],
        ["parse_results.py", "--results", root / "results", "--data", data, "--gan", gan / "tuned",
         "--features", first / "features" / "test.h5", "--out", root / "report"],
    ]  # fmt: skip


def contents(root) -> dict[str, tuple]:
    files = [p for p in root.rglob("*") if p.is_file()]
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


@pytest.mark.parametrize("run", [run_script, pytest.param(run_process, marks=pytest.mark.slow)])
def test_whole_chain_twice(tmp_path, image_folder, run):
    commands = chain(tmp_path / "out", image_folder)
    for command in commands:
        result = run(*command)
        assert result.returncode == 0, (command, result.stderr[-2000:])
        assert command[-1].exists()
    assert "report.html" in result.stdout and "±" in result.stdout
    before = contents(tmp_path / "out")
    for command in commands:
        result = run_script(*command)
        assert result.returncode == 0, (command, result.stderr[-2000:])
        assert "already exists" in result.stdout, (command, result.stdout)
    assert contents(tmp_path / "out") == before

    result = json.loads((tmp_path / "out" / "results" / "generated.json").read_text())
    assert {(t["trial"], t["n_shot"]) for t in result["trials"]} == {(t, n) for t in (1, 2) for n in (1, 5)}
    assert result["protocol"]["setup"] == "test" and result["provenance"]["wall_time_s"] > 0
