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


# ---- hostile and damaged files -------------------------------------------------------------------


def write_raw(path, header, data):
    """A file of this header, as text or as what JSON makes of it."""
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
    return path


def entry(first, last, shape, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


ONE = '{"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}'
HOSTILE = {
    "shared bytes": ({"a": entry(0, 8, [8]), "b": entry(4, 8, [4])}, "^b in .* shares bytes"),
    "the same bytes": ({"a": entry(0, 8, [8]), "b": entry(0, 8, [8])}, "shares bytes"),
    "a hole": ({"a": entry(0, 2, [2]), "b": entry(4, 8, [4])}, "^b in .* leaves a hole"),
    "a hole in front": ({"a": entry(4, 8, [4])}, "^a in .* leaves a hole"),
    "bytes behind": ({"a": entry(0, 4, [4])}, "has 4 bytes behind its last tensor"),
    "a name twice": (f'{{"a": {ONE}, "a": {ONE}}}', "one name twice"),
    "bool of 7": ({"a": entry(0, 8, [8], "BOOL")}, r"^a in .* holds 7 where true \(1\) or false"),
    "negative sizes": ({"a": entry(0, 8, [-2, -4])}, "^a in .* no shape that can be"),
    "true as a size": ({"a": entry(0, 8, [True, 8])}, "^a in .* no shape that can be"),
    "an overflow": ({"a": entry(0, 0, [0, 2**62, 2**62])}, "^a in .* no shape that can be"),
    "a hundred axes": ({"a": entry(0, 8, [1] * 100 + [8])}, "^a in .* no shape that can be"),
    "text as offsets": ({"a": entry("0", "8", [8])}, "^a in .* lies at bytes"),
    "three offsets": ({"a": entry(0, 8, [8]) | {"data_offsets": [0, 4, 8]}}, "lies at bytes"),
    "another dtype": ({"a": entry(0, 8, [8], "F8_E5M2")}, "^a in .* has dtype F8_E5M2"),
    "no entry": ({"a": 7}, "^a in .* has no dtype"),
    "a list": ([], "^the header of .* should be an object"),
    "nests": ("[" * 100_000, "^the header of .* is nested too deep"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_with_file_and_tensor(tmp_path, name):
    header, said = HOSTILE[name]
    path = write_raw(tmp_path / "a.safetensors", header, bytes([1, 0, 1, 0, 7, 0, 1, 0]))
    with pytest.raises(ValueError, match=said) as caught:
        safetensors.read(path)
    assert str(path) in str(caught.value)


def test_a_header_larger_than_any_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40))
    with path.open("r+b") as file:
        file.truncate(2 << 40)  # a hole, which takes no disk
    with pytest.raises(ValueError, match=r"header of .*a.safetensors has 1,099,511,627,776 bytes"):
        safetensors.read(path)


@pytest.mark.parametrize(
    "shard", ["../b.safetensors", "/etc/b.safetensors", "a/b.safetensors", "..", "", "b", 7, None]
)
def test_an_index_names_files_beside_it_alone(tmp_path, shard):
    write(tmp_path / "b.safetensors", ARRAYS)
    folder = tmp_path / "a"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"matrix": shard}}))
    with pytest.raises(ValueError, match=f"^{index} names the shard .*, which is no file beside"):
        safetensors.read_folder(folder)


def test_a_shard_may_be_a_link_as_hubs_keep_them(tmp_path):
    """huggingface_hub's cache: names in one folder, contents in another."""
    (tmp_path / "blobs").mkdir()
    write(tmp_path / "blobs" / "0123", ARRAYS)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model-1.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    weight_map = dict.fromkeys(ARRAYS, "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(safetensors.read_folder(folder), ARRAYS)


def test_one_name_in_two_files_is_ambiguous(tmp_path):
    for shard in ("model-1.safetensors", "model-2.safetensors"):
        write(tmp_path / shard, ARRAYS)
    with pytest.raises(ValueError, match=r"^matrix lies in model-1.* and in model-2"):
        safetensors.read_folder(tmp_path)
