"""Checksums: damage is noticed, wherever it is."""

import json
import subprocess

import h5py
import numpy as np
import pytest
import yaml

from lowshot.core.artifacts import read_recipe
from lowshot.core.files import digest, read_json, read_yaml, write_json, write_yaml
from lowshot.core.h5 import creating_h5, open_h5, update_h5
from lowshot.core.publishing import verify
from lowshot.core.sealing import Damaged, SealedFile, seal_folder, seal_h5, sums_of, verify_file, verify_folder

ROWS = np.random.default_rng(0).random((40_000, 16))  # 5 MB, six blocks


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "x.h5"
    with creating_h5(path) as file:
        file["rows"], file.attrs["stage"] = ROWS, "test"
    seal_h5(path)
    return path


def read_all(path):
    with open_h5(path) as file:
        return file["rows"][:], dict(file.attrs)


def test_a_sealed_file_is_read_as_any_other(sealed):
    rows, attributes = read_all(sealed)
    assert (rows == ROWS).all() and attributes == {"stage": "test"}
    with h5py.File(sealed) as file:  # other software ignores the trailer
        assert (file["rows"][:] == ROWS).all()
    with SealedFile(sealed) as file:
        assert file.has_checksums and file.size < sealed.stat().st_size < file.size + 100
    before = sealed.read_bytes()
    seal_h5(sealed)
    assert sealed.read_bytes() == before


def test_every_flipped_bit_is_noticed(sealed, tmp_path):
    rng, content = np.random.default_rng(1), bytearray(sealed.read_bytes())
    places = [*rng.integers(0, len(content), 60), *range(0, 2000, 50), *range(len(content) - 60, len(content))]
    for place in places:
        content[place] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "y.h5").write_bytes(content)
        with pytest.raises((Damaged, AssertionError)):
            verify(tmp_path / "y.h5")
            with SealedFile(tmp_path / "y.h5") as file:
                assert file.has_checksums, "a broken end"
        content = bytearray(sealed.read_bytes())


def test_only_what_is_read_is_verified(sealed):
    content = bytearray(sealed.read_bytes())
    content[3 * 2**20] ^= 1
    sealed.write_bytes(content)
    with open_h5(sealed) as file:
        assert (file["rows"][:1000] == ROWS[:1000]).all()
        with pytest.raises(Damaged, match="damaged between bytes 3145728 and 4194304"):
            file["rows"][:]
    with pytest.raises(Damaged, match=r"x\.h5: damaged between"):
        digest(sealed)


def test_a_file_that_is_cut_off(sealed):
    content = sealed.read_bytes()
    for n in (len(content) // 2, 100):
        sealed.write_bytes(content[:n])
        with pytest.raises(ValueError, match=r"x\.h5"):
            read_all(sealed)
    sealed.write_bytes(content[:-1])  # the checksums are lost, the data are whole
    assert (read_all(sealed)[0] == ROWS).all()


def test_a_file_without_checksums_is_read(tmp_path):
    with creating_h5(tmp_path / "x.h5") as file:
        file["rows"] = ROWS
    assert (read_all(tmp_path / "x.h5")[0] == ROWS).all()
    verify(tmp_path / "x.h5")


def test_an_updated_file_is_sealed_anew(sealed):
    with update_h5(sealed) as file:
        file["rows"][0] = 7
    seal_h5(sealed)
    assert (read_all(sealed)[0][0] == 7).all()


# --- JSON and YAML ---


@pytest.mark.parametrize(
    ("name", "write", "read"), [("x.json", write_json, read_json), ("x.yaml", write_yaml, read_yaml)]
)
def test_an_edited_text_file_is_noticed(tmp_path, name, write, read):
    path, content = tmp_path / name, {"stage": "a", "config": {"lr": 0.1, "é": [1, None, 1e-30]}, "inputs": {}}
    write(path, content)
    assert {key: value for key, value in read(path).items() if key != "checksum"} == content
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.1", "0.2"), encoding="utf-8")
    with pytest.raises(
        Damaged, match=r"damaged or edited.*Without the line 'checksum' it is read as a file of your own"
    ):
        read_recipe(path)
    plain = json.loads if name.endswith("json") else yaml.safe_load
    edited = {key: value for key, value in plain(path.read_text(encoding="utf-8")).items() if key != "checksum"}
    path.write_text(json.dumps(edited), encoding="utf-8")
    assert read(path)["config"]["lr"] == 0.2


# --- folders ---


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    for name in ("config.json", "model.pt", "deep/a b.txt", "log.jsonl"):
        (folder / name).write_text(name)
    seal_folder(folder)
    return folder


def test_sums_are_those_of_coreutils(folder):
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "deep/a b.txt: OK" in done.stdout
    assert sorted(sums_of(folder)) == ["config.json", "deep/a b.txt", "model.pt"], "logs differ between equal runs"


def test_damage_in_a_folder_is_named(folder):
    verify_folder(folder)
    (folder / "log.jsonl").write_text("more")
    verify_folder(folder)
    (folder / "model.pt").write_text("other")
    for look in (lambda: verify_folder(folder), lambda: verify_file(folder / "model.pt"), lambda: digest(folder)):
        with pytest.raises(Damaged, match=r"model\.pt: damaged"):
            look()
    (folder / "model.pt").unlink()
    with pytest.raises(Damaged, match=r"model\.pt: is missing"):
        verify_folder(folder)
    (folder / "SHA256SUMS").write_text("\0")
    with pytest.raises(Damaged, match="SHA256SUMS: damaged"):
        verify_folder(folder)


# --- text files that are not what they seem ---


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": [1, -Infinity]}', "-Infinity is not a number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "integer"),
        (b"\xff\xfe", "codec"),
        ("", "line 1"),
    ],
)
def test_json_that_is_none(tmp_path, text, cause):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"x\.json: not valid JSON \(.*{cause}"):
        read_json(tmp_path / "x.json")


def test_yaml_with_a_date_that_is_none(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 2001-99-99")
    with pytest.raises(ValueError, match=r"x\.yaml: not valid YAML \(month must be"):
        read_yaml(tmp_path / "x.yaml")


def test_a_value_of_yaml_that_looks_like_text_is_no_text(tmp_path):
    """One bit makes the quote of a key another character, and the key a number."""
    write_yaml(tmp_path / "a.yaml", {"stage": "x", "config": {"1": 2, "day": "2001-01-01"}, "inputs": {}})
    whole = (tmp_path / "a.yaml").read_text()
    for quoted, bare in (("'1'", "1"), ("'2001-01-01'", "2001-01-01")):
        assert quoted in whole
        (tmp_path / "a.yaml").write_text(whole.replace(quoted, bare))
        with pytest.raises(Damaged):
            read_yaml(tmp_path / "a.yaml")
