"""Files of init states: LIBERO's own are read as before, every other one is a sentence."""

import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pirl_jax.envs.libero import files, stored_states
from tests import mutants

ROOT = pathlib.Path(__file__).parents[3]
STATES = np.random.default_rng(0).normal(size=(stored_states.NUM_STATES, 9))


def pickled(value):
    return pickle.dumps(value, protocol=2)


def write(path, content, compression=zipfile.ZIP_STORED, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "task.pruned_init"


def test_both_numpy_generations_and_orders_are_read(path):
    content = pickled(STATES)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    swapped = pickled(STATES.astype(">f8"))
    transposed = pickled(np.asfortranarray(STATES))
    newer = pickle.dumps(STATES, protocol=3)
    for stored in (content, old, swapped, transposed, newer):
        states = stored_states.read(write(path, stored))
        np.testing.assert_array_equal(states, STATES)
        assert states.dtype == np.float64 and states.dtype.isnative


def test_the_same_numbers_as_numpys_own_reading():
    """Bit for bit, where nothing needs to be distrusted: a file of LIBERO's."""
    task = files.tasks("libero_goal")[0]
    path = files.package() / "init_files" / task.suite / f"{task.name}.pruned_init"
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        content = archive.read(name).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert stored_states.read(path).tobytes() == pickle.loads(content).tobytes()


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


class Codec:
    def __reduce__(self):
        return __import__("_codecs").encode, ("x", "zlib_codec")


def with_dtype(text):
    """Pickle of STATES that calls its dtype so."""
    content = pickled(STATES)
    before = b"X" + struct.pack("<I", 2) + b"f8"
    assert content.count(before) == 1
    return content.replace(before, b"X" + struct.pack("<I", len(text)) + text.encode())


WRONG = {
    "runs code": (pickled(Evil()), r"asks for 'posix\.system'"),
    "another codec": (pickled(Codec()), "stored in another way"),
    "objects": (pickled(np.array([["a", None]], object)), "pickle is not that of an array"),
    "dtype O": (with_dtype("O8"), "dtype that is not accepted"),
    "dtype T": (with_dtype("T16"), "dtype that is not accepted"),
    "complex": (with_dtype("c8"), "dtype that is not accepted"),
    "half of the bytes": (with_dtype("f4"), r"4 bytes per element has 3600 bytes instead of 1800"),
    "a record": (pickled(np.zeros((50, 9), "f4,f4")), "pickle is not that of an array"),
    "text": (pickled(STATES.astype("U8")), "dtype that is not accepted"),
    "integers": (pickled(np.zeros((50, 9), int)), r"int64 of shape \[50, 9\]"),
    "NaN": (pickled(np.full((50, 9), np.nan)), r"shape \[50, 9\] has values that are not finite"),
    "infinite": (pickled(np.full((50, 9), np.inf)), "not finite"),
    "too few": (pickled(STATES[:49]), r"shape \[49, 9\] instead of 50"),
    "a line": (pickled(STATES[0]), r"shape \[9\]"),
    "a number": (pickled(3), "holds no init states"),
    "a list": (pickled([1.0]), "pickle is not that of an array"),
    "a large memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "LONG_BINPUT"),
    "a claim": (b"\x80\x02X\xff\xff\xff\x7f.", "holds no init states"),
    "no end": (pickled(STATES)[:-1], "holds no init states"),
    "many steps": (b"\x80\x02" + b"N" * 2000 + b".", "pickle is not that of an array"),
    "nothing": (b"", "holds no init states"),
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_else_a_pickle_holds_is_a_sentence(name, path):
    content, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence) as told:
        stored_states.read(write(path, content))
    assert str(path) in str(told.value) and "install LIBERO again" in str(told.value)


def test_whatever_else_an_archive_is_is_a_sentence(path, tmp_path):
    content = pickled(STATES)
    with pytest.raises(ValueError, match="holds no init states"):
        stored_states.read(path)
    with pytest.raises(ValueError, match="holds no init states"):
        stored_states.read(tmp_path)
    with pytest.raises(ValueError, match=r"data\.pkl is compressed"):
        stored_states.read(write(path, content, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"0 entries data\.pkl"):
        stored_states.read(write(path, content, name="archive/other"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a zip file"):
        stored_states.read(path)
    with path.open("wb") as file:
        file.truncate(stored_states.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="larger than 16777216 bytes"):
        stored_states.read(path)


def fuzz(seed, count):
    """Every mutant of a small file is read or refused; -> how many of each."""
    generator = np.random.default_rng(seed)
    stored_states.NUM_STATES = 2
    content = pickled(np.arange(6.0).reshape(2, 3))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    outcomes = collections.Counter()
    for k, mutant in enumerate(mutants.mutants(content, count, generator)):
        try:
            states = stored_states._checked(stored_states._unpickle(mutant), 2)
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:
            assert states.shape[0] == 2 and np.isfinite(states).all()
            outcomes["read"] += 1
        if k % 10 == 0:
            (archived,) = mutants.mutants(buffer.getvalue(), 1, generator)
            path = pathlib.Path(sys.argv[1])
            path.write_bytes(archived)
            try:
                stored_states.read(path)
            except ValueError:
                outcomes["refused"] += 1
    assert outcomes["read"] and outcomes["refused"]
    return outcomes


def test_mutated_files_are_read_or_refused(tmp_path):
    """In a process of its own with little memory: a crash or a large allocation ends it."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); "
        "from tests.envs.libero import test_libero_stored_states as tests; "
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; print(tests.fuzz(0, 3000)); "
        "more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used; assert more < 50_000"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mutant")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
