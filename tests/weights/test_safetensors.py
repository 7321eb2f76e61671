import json
import struct

import ml_dtypes
import numpy as np
import pytest

from pirl_jax.weights import safetensors

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "nothing": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False]),
}


def layout_of(arrays):
    return {name: (x.shape, x.dtype) for name, x in arrays.items()}


def write(path, arrays):
    safetensors.write(path, layout_of(arrays), iter(arrays.values()), {"format": "pt"})


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "a.safetensors", ARRAYS)
    assert_equal(safetensors.read(tmp_path / "a.safetensors"), ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "a.safetensors", {"x": np.array([1.0, 2.0], np.float32)})
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert length % 8 == 0
    assert raw[8 + length :] == b"\0\0\x80\x3f\0\0\0\x40"
    assert json.loads(raw[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_a_file_that_is_cut_off_is_a_sentence(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="cut off"):
        safetensors.read(path)


def test_an_unfinished_write_is_not_visible(tmp_path):
    def arrays():
        yield ARRAYS["matrix"]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        safetensors.write(tmp_path / "a.safetensors", layout_of(ARRAYS), arrays(), {})
    assert not list(tmp_path.iterdir())


def test_shards_are_joined_by_their_index(tmp_path):
    names = list(ARRAYS)
    shards = {
        "model-00001-of-00002.safetensors": names[:2],
        "model-00002-of-00002.safetensors": names[2:],
    }
    for shard, members in shards.items():
        write(tmp_path / shard, {name: ARRAYS[name] for name in members})
    assert_equal(safetensors.read_folder(tmp_path), ARRAYS)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(safetensors.read_folder(tmp_path), ARRAYS)
    wrong = weight_map | {"ghost": "model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(ValueError, match="ghost in a shard that lacks it"):
        safetensors.read_folder(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00002.safetensors, which"):
        safetensors.read_folder(tmp_path)
