import os
import pathlib
import pickle
import resource
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pirl_jax.weights import opcodes, pickled

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
    write_description(path, pickle.dumps(tree, protocol=2))


def write_description(path, description, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", description)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('storage_')}", content)


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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_plain_data_is_read(protocol):
    tree = {"a": (1, [2.5, None], True, "ä" * 300), 7: {}, "nested": {"b": (), "c": (1, 2, 3, 4)}}
    machine = opcodes.Machine("x", "y", None, None)
    assert machine.run(pickle.dumps(tree, protocol)) == tree


class Tensor:
    """What torch.save writes for a tensor of storage 0, which holds eight float32 or bytes."""

    def __init__(self, size, stride, kind="FloatStorage", count=8, offset=0, key="0"):
        self.id = ("storage", kind, key, "cpu", count)
        self.view = (offset, size, stride)


def described(**tensors) -> bytes:
    """The opcodes of a state_dict of protocol 2, written by hand."""
    parts = [b"\x80\x02}("]
    for name, tensor in tensors.items():
        tag, kind, key, device, count = tensor.id
        offset, size, stride = tensor.view
        parts += [plain(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", plain(tag)]
        parts += [f"ctorch\n{kind}\n".encode(), plain(key), plain(device), plain(count), b"tQ"]
        parts += [plain(offset), plain(size), plain(stride), b"\x89}tR"]
    return b"".join(parts) + b"u."


def plain(value) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


FLOATS = np.arange(8, dtype=np.float32)
BOMBS = {
    "stride 0": (Tensor((1 << 40,), (0,)), r"^w in .* has shape \(1099511627776,\) and repeats"),
    "overlaps": (Tensor((8, 8), (0, 1)), r"^w in .* repeats the 8 elements"),
    "outside": (Tensor((8,), (1,), offset=1), "^w in .* reaches beyond its storage"),
    "before": (Tensor((8,), (1,), offset=-4), "^w in .* reaches beyond its storage"),
    "a stride without end": (Tensor((0, 8), (1, 1 << 62)), "^w in .* reaches beyond its storage"),
    "sizes without end": (Tensor((0, 1 << 62), (1, 1)), "^w in .* is not described by whole"),
    "a long storage": (Tensor((8,), (1,), count=1 << 40), "^storage 0 of .* cut off"),
    "another entry": (Tensor((8,), (1,), key="../data.pkl"), r"^storage ../data.pkl of .* missing"),
    "true as a size": (Tensor((True, 8), (8, 1)), "^w in .* is not described by whole"),
    "bool of 2": (Tensor((3,), (1,), "BoolStorage"), r"^w in .* holds \d+ where true"),
    "no numbers": (Tensor((8,), (1,), "ComplexFloatStorage"), "type that is known"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tensor_is_refused_before_it_takes_memory(tmp_path, name):
    tensor, said = BOMBS[name]
    path = tmp_path / "a.pt"
    write_description(path, described(w=tensor), storage_0=FLOATS[::-1].tobytes())
    with pytest.raises(ValueError, match=said) as caught:
        pickled.read(path)
    assert str(path) in str(caught.value)


def test_tensors_that_share_storages_come_to_few_file_sizes(tmp_path):
    path = tmp_path / "a.pt"
    storage = np.zeros(1 << 16, np.float32)
    whole = Tensor((1 << 16,), (1,), count=1 << 16)
    write_description(path, described(a=whole, b=whole), storage_0=storage.tobytes())
    assert {x.shape for x in pickled.read(path).values()} == {(1 << 16,)}
    many = {f"w{k}": whole for k in range(100)}
    write_description(path, described(**many), storage_0=storage.tobytes())
    with pytest.raises(ValueError, match=r"a.pt come to 26,214,400 bytes, 9\d times the file"):
        pickled.read(path)


OPCODES = {
    "a memo of 4 GB": (b"\x80\x02Nr\xff\xff\xff\x7f.", "holds no tensors by name"),
    "bytes without end": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "breaks off or makes no sense"),
    "a bytearray": (b"\x96\x08\0\0\0\0\0\0\0" + bytes(8) + b".", "asks for BYTEARRAY8"),
    "no end": (b"(" * 100_000, "breaks off or makes no sense"),
    "nests": (b")" + b"\x85" * 100_000 + b".", "holds no tensors by name"),
    "a table in itself": (b"}q\0X\1\0\0\0ah\0s.", "holds no tensors by name"),
    "an instance": (b"cos\nsystem\n)\x81.", "asks for NEWOBJ"),
    "attributes of a tuple": (b")}b.", "a tuple is no dict"),
    "a call of a text": (b"X\1\0\0\0a)R.", "a call of what is no function"),
    "arguments that do not fit": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "makes no sense"),
    "a name twice": (b"}(X\1\0\0\0aNX\1\0\0\0aNu.", "names a twice"),
    "a tuple as a name": (b"})Ns.", "has a tuple as a name"),
    "numbers that collide": (b"}\x8a\x08" + b"\xff" * 7 + b"\x1fNs.", "has a int as a name"),
    "too large": (b"N0" * (1 << 22), "larger than 2,097,152 bytes"),
}


@pytest.mark.parametrize("name", OPCODES)
def test_hostile_opcodes_are_refused_in_a_sentence_and_within_bounds(tmp_path, name):
    description, said = OPCODES[name]
    path = tmp_path / "a.pt"
    write_description(path, description)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said) as caught:
        pickled.read(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 1 << 28


def test_a_table_found_twice_on_every_level_is_looked_at_once():
    tree = {}
    for _ in range(100):
        tree = {"a": tree, "b": tree}
    assert pickled._state_dict(tree) == {}


@pytest.mark.parametrize("place", ["byteorder", "data.pkl", "data.pkl twice"])
def test_what_lies_beside_the_storages_is_checked(tmp_path, place):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            content = old.read(info)
            if name == place == "byteorder":
                content = b"big"
            new.writestr(info.filename, content)
        if "twice" in place:
            with pytest.warns(UserWarning, match="Duplicate name"):
                new.writestr("torch_state_dict/data.pkl", b"N.")
    if place == "data.pkl":
        content = path.read_bytes()
        path.write_bytes(content.replace(b"turned", b"turner", 1))  # an honest name, not its own
    said = {"byteorder": "the other byte order", "data.pkl": "data.pkl of .* is damaged"}
    with pytest.raises(ValueError, match=said.get(place, "holds data.pkl twice")):
        pickled.read(path)


def test_a_pointer_and_a_folder_are_named(tmp_path):
    path = tmp_path / "full_weights.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(ValueError, match=f"^{path} is a Git LFS pointer"):
        pickled.read(path)
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder"):
        pickled.read(tmp_path)


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
