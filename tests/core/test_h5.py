"""HDF5 files of others: one line for what is wrong with them, and never a crash."""

import os
import signal

import h5py
import numpy as np
import pytest

from lowshot.core import h5
from lowshot.core.errors import InputError
from lowshot.core.h5 import create_array, creating_h5, open_h5, require_datasets, update_h5

FIELDS = {"rows": ("floats", 2), "labels": ("integers", 1)}


def write(path, **changes):
    content = {"rows": np.ones((4, 3), np.float32), "labels": np.arange(4)} | changes
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if values is not None:
                file[name] = values
    return path


def read(path):
    with open_h5(path) as file:
        require_datasets(file, FIELDS)
        return {name: file[name][:] for name in FIELDS}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rows": None}, "lacks the dataset 'rows' .it has: labels"),
        ({"rows": np.ones(4)}, "'rows' must be floats with 2 axes, not float64 .4,"),
        ({"rows": np.ones((4, 3), complex)}, "'rows' must be floats with 2 axes, not complex128"),
        ({"rows": np.ones((4, 3), np.longdouble)}, "'rows' must be floats"),
        ({"labels": np.arange(4) + 0.9}, "'labels' must be integers with 1 axes, not float64"),
        ({"labels": np.array(["1", "2"], object)}, "'labels' must be integers"),
        ({"labels": h5py.SoftLink("/rows")}, "'labels' is a link to another dataset"),
        ({"labels": h5py.ExternalLink("other.h5", "/x")}, "'labels' is a link to other.h5"),
    ],
)
def test_other_datasets_are_refused(tmp_path, changes, cause):
    with pytest.raises(InputError, match=f"x.h5: {cause}"):
        read(write(tmp_path / "x.h5", **changes))


def test_data_elsewhere_or_nowhere_are_refused(tmp_path):
    write(tmp_path / "other.h5")
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "rows", (4, 3))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["labels"] = np.arange(4)
        file.create_virtual_dataset("rows", layout)
    with pytest.raises(InputError, match=r"the data of 'rows' are in another file"):
        read(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["labels"] = np.arange(4)
        file.create_dataset("rows", (40_000_000, 64), "f4", chunks=(1000, 64), compression="gzip")  # 10 GB of nothing
    with pytest.raises(InputError, match=r"'rows' has 0 bytes, but its shape .* needs 10240000000"):
        read(tmp_path / "y.h5")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["labels"] = np.arange(4)
        file.create_dataset("rows", (1000, 3), "f4", chunks=(10, 3), compression="gzip")[:10] = 1
    with pytest.raises(InputError, match=r"'rows' has gaps|'rows' has \d+ bytes"):
        read(tmp_path / "z.h5")


def test_compressed_files_are_read(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("rows", data=np.zeros((5000, 30)), compression="gzip")
        file["labels"] = np.arange(4)
    assert (read(tmp_path / "x.h5")["rows"] == 0).all()


def test_damage_is_one_line(tmp_path):
    """Whatever the HDF5 library makes of it: each flipped byte gives the content, other content, or an InputError."""
    rng, content = np.random.default_rng(0), write(tmp_path / "x.h5").read_bytes()
    refused = 0
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] = rng.integers(0, 256)
        (tmp_path / "y.h5").write_bytes(damaged)
        try:
            read(tmp_path / "y.h5")
        except InputError as error:
            refused += 1
            assert "y.h5" in str(error) and "\n" not in str(error)
    assert refused > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
@pytest.mark.parametrize(
    ("fault", "seconds", "cause"),
    [
        (lambda path: os.kill(os.getpid(), signal.SIGSEGV), 60, "the HDF5 library crashes on it"),
        (lambda path: signal.pause(), 0.2, "the HDF5 library does not come to an end with it"),
    ],
)
def test_a_crash_or_a_hang_of_the_library_is_one_line(tmp_path, monkeypatch, fault, seconds, cause):
    monkeypatch.setattr(h5, "_read_structure", fault)
    monkeypatch.setattr(h5, "_SECONDS", seconds)
    with pytest.raises(InputError, match=f"x.h5: damaged, {cause}"):
        read(write(tmp_path / "x.h5"))


def test_errors_of_our_own_keep_their_traceback(tmp_path):
    with pytest.raises(KeyError, match="bug"), open_h5(write(tmp_path / "x.h5")):
        raise KeyError("bug")


# --- writing ---


class FullDisk(h5._Disk):
    def _write_all(self, view):
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    """Without `_Disk`, closing the file after it crashes the process."""
    with creating_h5(tmp_path / "x.h5") as file:
        create_array(file, "rows", (10, 3), "f4")
    monkeypatch.setattr(h5, "_Disk", FullDisk)
    with pytest.raises(OSError, match="No space left"), creating_h5(tmp_path / "y.h5") as file:
        file["rows"] = np.ones((1000, 1000))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]
    with pytest.raises(OSError, match="No space left"), update_h5(tmp_path / "x.h5") as file:
        file["rows"][:] = 1
        file.flush()
        pytest.fail("the flush must fail")


def test_arrays_are_contiguous_and_zero(tmp_path):
    with creating_h5(tmp_path / "x.h5") as file:
        create_array(file, "rows", (10, 3), "f4")
    with open_h5(tmp_path / "x.h5") as file:
        assert (file["rows"][:] == 0).all() and file["rows"].id.get_offset() is not None
