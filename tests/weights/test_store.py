import errno
import json
import os
import subprocess
import sys
import time

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import storage

from pirl_jax.core import endings
from pirl_jax.weights import folders
from pirl_jax.weights import store as store_


@struct.dataclass
class State:
    params: dict
    opt_state: tuple
    step: jax.Array
    key: jax.Array


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(scale: float = 1.0) -> State:
    params = {
        "w": scale * jnp.arange(16.0).reshape(8, 2),
        "head": {"b": jnp.ones(3, jnp.bfloat16) * scale},
    }
    return State(params, OPTIMIZER.init(params), jnp.asarray(7, jnp.int32), jax.random.key(3))


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def store(tmp_path):
    opened = store_.Store(tmp_path / "checkpoints", keep=2)
    yield opened
    opened.close()


def test_dataclass_optax_state_and_rng_key_come_back_in_the_same_structure(store):
    state = make_state()
    store.save(1, state, {"env_steps": 640, "episode": [1, 2]})
    abstract = jax.eval_shape(make_state)
    restored, extra = store.restore(abstract)
    assert_equal(restored, state)
    assert extra == {"env_steps": 640, "episode": [1, 2]}
    assert jax.random.uniform(restored.key) == jax.random.uniform(state.key)


def test_restore_places_arrays_as_the_target_asks(store):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    store.save(1, {"w": jnp.arange(16.0)})
    restored, _ = store.restore({"w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split)})
    assert restored["w"].sharding == split
    store.save(2, restored)  # and a sharded state is saved as one
    single, _ = store.restore({"w": jnp.zeros(16)})
    np.testing.assert_array_equal(single["w"], np.arange(16.0))


def test_state_may_be_donated_right_after_save(store):
    state = {"w": jnp.arange(4096.0)}
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    store.save(1, state)
    advance(state)
    restored, _ = store.restore(jax.eval_shape(lambda: {"w": jnp.arange(4096.0)}))
    np.testing.assert_array_equal(restored["w"], np.arange(4096.0))


def test_only_the_newest_stay_and_every_kept_one_restores(store):
    for iteration in (1, 2, 3):
        store.save(iteration, {"w": jnp.full(3, float(iteration))})
    store.wait()
    assert store.latest() == 3
    restored, _ = store.restore({"w": jnp.zeros(3)}, iteration=2)
    assert restored["w"][0] == 2
    with pytest.raises(ValueError, match=r"no checkpoint of iteration 1; it holds \[2, 3\]"):
        store.restore({"w": jnp.zeros(3)}, iteration=1)


def test_misfit_lists_every_wrong_leaf_in_one_error(store):
    store.save(
        1,
        {
            "same": jnp.zeros(2),
            "left": jnp.zeros(1),
            "shape": jnp.zeros((2, 3)),
            "dtype": jnp.zeros(4),
        },
    )
    wanted = {
        "same": jnp.zeros(2),
        "absent": jnp.zeros(1),
        "shape": jnp.zeros((3, 2)),
        "dtype": jnp.zeros(4, jnp.bfloat16),
    }
    with pytest.raises(ValueError) as caught:
        store.restore(wanted)
    for line in (
        "absent is missing",
        "left is left over",
        "shape is float32[2, 3] and should be float32[3, 2]",
        "dtype is float32[4] and should be bfloat16[4]",
    ):
        assert line in str(caught.value)
    assert "same" not in str(caught.value)


def test_a_subtree_is_read_alone_and_strictly(store):
    state = make_state()
    store.save(1, state)
    params, _ = store.restore(jax.eval_shape(lambda: make_state().params), prefix="params")
    assert_equal(params, state.params)
    with pytest.raises(ValueError, match="params/head/b is left over"):
        store.restore({"w": jnp.zeros((8, 2))}, prefix="params")


def test_empty_or_absent_directory_is_a_sentence(store, tmp_path):
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        store.restore({"w": jnp.zeros(1)})
    assert store.latest() is None
    with pytest.raises(ValueError, match="does not exist"):
        store_.Store(tmp_path / "typo", create=False)


KILLED = """
import os, pathlib, sys, time
import jax.numpy as jnp
from pirl_jax.weights import store
opened = store.Store(sys.argv[1])
opened.save(1, {"w": jnp.ones(1 << 24)})
opened.wait()
opened.save(2, {"w": jnp.zeros(1 << 24)})
while not list(pathlib.Path(sys.argv[1]).glob("2.*tmp*")):
    time.sleep(0.001)
os._exit(9)
"""


def test_a_killed_save_leaves_the_previous_checkpoint(tmp_path):
    assert (
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == 9
    )
    assert list(tmp_path.glob("2.*tmp*")) and not (tmp_path / "2").exists()
    reader = store_.Store(tmp_path, create=False)
    assert reader.latest() == 1
    restored, _ = reader.restore({"w": jax.ShapeDtypeStruct((1 << 24,), jnp.float32)})
    assert restored["w"].min() == 1
    reader.close()
    resumed = store_.Store(tmp_path)  # the next save clears the remains away
    resumed.save(2, {"w": jnp.full(3, 2.0)})
    resumed.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_saving_after_a_rewind_drops_the_abandoned_branch(store):
    for iteration in (1, 2):
        store.save(iteration, {"w": jnp.full(1, float(iteration))})
    store.save(2, {"w": jnp.full(1, 20.0)})
    store.wait()
    restored, _ = store.restore({"w": jnp.zeros(1)})
    assert store.latest() == 2 and restored["w"][0] == 20


def test_a_checkpoint_written_again_is_another(store):
    store.save(3, {"w": np.ones(2)})
    first = store.identity()
    assert first == store.identity(3) and first["iteration"] == 3
    store.save(3, {"w": np.zeros(2)})
    assert store.identity()["written_ns"] > first["written_ns"]


def save_numbers(store, *iterations):
    for iteration in iterations:
        store.save(iteration, {"w": np.full(1, float(iteration))})
    store.wait()


def number(store, iteration=None):
    restored, _ = store.restore({"w": np.zeros(1)}, iteration)
    return restored["w"][0]


def test_a_protected_checkpoint_outlives_the_newest(store):
    save_numbers(store, 1, 2)
    store.protect(1)
    save_numbers(store, 3, 4)
    assert folders.standing(store.directory) == [1, 3, 4] and number(store, 1) == 1
    store.protect(3)
    save_numbers(store, 5)
    assert folders.standing(store.directory) == [3, 4, 5]
    store.protect(None)
    save_numbers(store, 6)
    assert folders.standing(store.directory) == [5, 6]


def test_an_abandoned_branch_is_not_resumed_and_lies_there_until_it_is_replaced(store):
    store.keep = 5
    save_numbers(store, 1, 2, 3)
    store.remove_after(1)
    assert store.latest() == 1 and number(store) == 1
    assert {path.name for path in store.directory.iterdir()} == {"1", "2.abandoned", "3.abandoned"}
    store_.Store(store.directory, keep=5).close()  # also when a run starts in between
    assert len(list(store.directory.iterdir())) == 3
    save_numbers(store, 2)
    assert {path.name for path in store.directory.iterdir()} == {"1", "2"}


def test_nothing_is_removed_before_its_replacement_is_complete(store, monkeypatch):
    save_numbers(store, 2, 3)
    complete = store_.folders.publish
    found = []

    def looked(directory, iteration):
        found.append([number(store_.Store(directory, create=False), i) for i in (2, 3)])
        complete(directory, iteration)

    monkeypatch.setattr(store_.folders, "publish", looked)
    store.save(2, {"w": np.full(1, 20.0)})
    store.wait()
    assert found == [[2, 3]]
    assert {path.name for path in store.directory.iterdir()} == {"2"} and number(store) == 20


def test_a_writer_killed_between_two_names_loses_neither(tmp_path):
    opened = store_.Store(tmp_path)
    save_numbers(opened, 1, 2)
    opened.close()
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    (tmp_path / "3.partial").mkdir()
    opened = store_.Store(tmp_path)
    assert number(opened) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    opened.close()


def test_what_is_no_checkpoint_does_not_matter(store):
    save_numbers(store, 1)
    for name in ("foo", "12.orbax-checkpoint-tmp", "7", "007", "8.damaged"):
        (store.directory / name).mkdir()
    (store.directory / "9").write_text("a file")
    assert store.latest() == 1 and number(store) == 1
    save_numbers(store, 7, 9)
    assert folders.standing(store.directory) == [7, 9]
    assert {"foo", "007", "7.damaged", "8.damaged", "9.damaged"} < {
        path.name for path in store.directory.iterdir()
    }


def refuse(store, monkeypatch, times):
    """The disk is full at the end of so many saves."""
    seal = folders.seal
    left = [None] * times

    def full(folder):
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder)

    monkeypatch.setattr(folders, "seal", full)
    monkeypatch.setattr(store_, "PAUSE_S", 0.0)


def until_failed(store):
    deadline_s = time.monotonic() + 10
    while not store.failed():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_save_that_fails_is_seen_without_another_one_and_made_good(store, monkeypatch, caplog):
    save_numbers(store, 1)
    assert not store.failed()
    refuse(store, monkeypatch, 2)
    for iteration in (2, 3):
        store.save(iteration, {"w": np.full(1, float(iteration))})
        until_failed(store)
        assert f"{iteration} could not be written (No space left on device)" in caplog.text
        assert {path.name for path in store.directory.iterdir()} == {"1"}, "no remains"
    save_numbers(store, 4)
    assert not store.failed() and folders.standing(store.directory) == [1, 4]
    save_numbers(store, 5)
    assert folders.standing(store.directory) == [4, 5]


def test_a_checkpoint_that_cannot_be_removed_is_in_no_saves_way(store, monkeypatch, caplog):
    """Nor in that of the end: a disk that has just become read-only."""
    save_numbers(store, 1, 2)

    def refused(directory, iteration):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(folders, "remove", refused)
        save_numbers(store, 3)
        assert not store.failed() and folders.standing(store.directory) == [1, 2, 3]
        assert "checkpoint 1 cannot be removed (Read-only file system)" in caplog.text
        store.close()
    assert folders.standing(store.directory) == [1, 2, 3]


def test_an_iteration_of_a_branch_that_was_left_is_saved_again(store):
    save_numbers(store, 1, 2)
    store.remove_after(1)
    store.finish(2, {"w": np.full(1, 20.0)})
    assert number(store, 2) == 20


def test_failures_in_a_row_end_the_run_and_older_checkpoints_stay(store, monkeypatch):
    save_numbers(store, 1)
    refuse(store, monkeypatch, 2)
    store.finish(2, {"w": np.full(1, 2.0)})  # the third time
    assert number(store) == 2
    refuse(store, monkeypatch, 3)
    with pytest.raises(endings.Failure) as caught:
        store.finish(3, {"w": np.full(1, 3.0)})
    assert str(caught.value) == (
        f"checkpoint {store.directory}/3 could not be written (No space left on device), 3 times "
        f"in a row; it holds [1, 2]; make room or let this user write there, then go on with "
        f"--resume auto"
    )
    assert number(store, 1) == 1 and number(store, 2) == 2


def test_closing_hides_no_other_end(tmp_path, monkeypatch, caplog):
    opened = store_.Store(tmp_path)
    refuse(opened, monkeypatch, 3)
    for iteration in (1, 2, 3):
        opened.save(iteration, {"w": np.ones(1)})
    opened.close()
    assert "3 times in a row" in caplog.text


def test_an_error_of_another_kind_keeps_its_traceback(store, monkeypatch):
    monkeypatch.setattr(folders, "seal", lambda folder: {}["mistake"])
    store.save(1, {"w": np.ones(1)})
    with pytest.raises(KeyError, match="mistake"):
        store.wait()


def test_what_is_on_the_disk_is_not_saved_again(store, monkeypatch):
    save_numbers(store, 1)
    again = store_.Store(store.directory)
    monkeypatch.setattr(again, "save", None)
    again.finish(1, {"w": np.ones(1)})
    again.close()


REFUSED = """
import json, time
import numpy as np
from pirl_jax.weights import store
begin = time.monotonic()
opened = store.Store(place + "/checkpoints")
large = {"w": np.random.default_rng(0).normal(size=1 << 19)}  # 4 MB, which do not shrink
opened.save(0, {"w": np.zeros(1)})
opened.wait()
opened.save(1, large)
while not opened.failed():
    time.sleep(0.01)
read_only()
opened.save(2, {"w": np.ones(1)})
assert opened.failed()
writable()
opened.save(3, {"w": np.ones(1)})
opened.wait()
opened.close()
print(json.dumps([sorted(os.listdir(place + "/checkpoints")), time.monotonic() - begin < 30]))
"""


def test_full_and_read_only_disks_hang_nobody(tmp_path):
    done = storage.on_small_disk(REFUSED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["0", "3"], True]
    warnings = done.stderr.splitlines()
    assert len(warnings) == 2, "not a page of tracebacks"
    assert "1 could not be written (No space left on device); failure 1" in warnings[0]
    assert "2 could not be written (Read-only file system); failure 2" in warnings[1]
