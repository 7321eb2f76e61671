import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pirl_jax.weights import pickled

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_state_dict.pt"


def test_a_file_of_torch_is_read_without_torch():
    found = pickled.read(GOLDEN)
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "plain": base,
        "part": base[1:3, 2:5],
        "turned": base.T,
        "tied": base,
        "parameter": np.array([-1, -0.5, 0, 0.5, 1], np.float32),
        "half": np.array(
            [-2, -1.3359375, -0.66796875, -5.960464477539063e-08, 0.66796875, 1.3359375, 2],
            ml_dtypes.bfloat16,
        ),
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and not found[name].flags.writeable, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def write_pickle(path, tree):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(tree))


def test_code_in_a_file_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pickle("bad.pt", {"weights": Attack()})
    refused = r"wants to run (posix|nt).system, which is no plain tensor; .*safetensors"
    with pytest.raises(ValueError, match=refused):
        pickled.read("bad.pt")
    assert not (tmp_path / "attacked").exists()


def test_other_files_are_a_sentence(tmp_path):
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}))
    older = r"is no .pt file of PyTorch 1.6 or later; load it with PyTorch"
    with pytest.raises(ValueError, match=older):
        pickled.read(tmp_path / "old.pt")
    write_pickle(tmp_path / "empty.pt", {"step": 3})
    with pytest.raises(ValueError, match="holds no tensors by name"):
        pickled.read(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    "offset, size, stride",
    [(2, (3,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (3, 1)), (3, (2,), (-1,))],
)
def test_a_tensor_never_reaches_beyond_its_storage(offset, size, stride):
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        pickled._tensor(np.arange(4.0), offset, size, stride, False, None)


def test_a_lost_storage_is_a_sentence(tmp_path):
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(tmp_path / "cut.pt", "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("data/1"):
                new.writestr(info.filename, old.read(info))
    with pytest.raises(ValueError, match=r"storage 1 of .* is missing or cut off"):
        pickled.read(tmp_path / "cut.pt")
