"""Somebody's own demonstrations in a run: the rows that scripted ones would give, the statistics
that were chosen, and one sentence where they do not fit."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from pirl_jax.core import endings
from pirl_jax.envs import base as envs
from pirl_jax.policy import normalize
from pirl_jax.recipes import probe
from pirl_jax.run import command, config, own_data, policies, teach
from tests import written_datasets as written

pytest.importorskip("pyarrow", reason="the extra datasets (pyarrow) is not installed")
h5py = pytest.importorskip("h5py", reason="the extra datasets (h5py) is not installed")

SPEC = envs.EnvSpec(
    suite="probe_constant",
    instructions=("solve the probe",),
    num_init_states=2,
    max_episode_steps=10,
    image_size_px=16,
)


def settings_for(path, **fields):
    page = probe.get_config()
    page.model.norm_stats = ""
    page.sft.update(dict(dataset=str(path), steps=4, batch_size=8))
    for name, value in fields.items():
        section, _, field = name.partition("__")
        page[section][field] = value
    return config.settings(page)


def opened(path, **fields):
    settings = settings_for(path, **fields)
    return settings, own_data.open_dataset(settings, SPEC)


def lerobot(folder, made):
    return written.lerobot_v3(folder, made, "image")


def leaves(batch):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]


@pytest.mark.parametrize("mode, delta", [("zscore", True), ("quantile", False)])
def test_examples_are_those_of_scripted_ones(mode, delta, tmp_path):
    """Bit by bit what the same episodes in memory give: images, state, prompt, actions."""
    made = written.episodes()
    path = lerobot(tmp_path / "data", made)
    settings, data = opened(path, model__norm_mode=mode, model__delta_actions=delta)
    examples = own_data.examples(settings, data, data.stats)
    to_model = policies.transform(settings, data.stats, SPEC.instructions, only_these=True)
    expected = teach.encode(settings, to_model, made)
    assert examples.count == expected.count == 18
    for key in (0, 1):
        drawn = teach.batches(examples, 8, jax.random.key(key))
        like = teach.batches(expected, 8, jax.random.key(key))
        for _ in range(3):
            for one, other in zip(leaves(next(drawn)), leaves(next(like)), strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
    data.close()


def test_the_order_is_that_of_the_key_whatever_was_read_before(tmp_path):
    """So a resumed run draws what the uninterrupted one would have drawn."""
    path = written.lerobot_v2(tmp_path / "data", written.episodes())
    settings, data = opened(path)
    used = own_data.examples(settings, data, data.stats)
    batches = teach.batches(used, 8, jax.random.key(3))
    first = [leaves(next(batches)) for _ in range(3)]
    fresh = own_data.examples(settings, opened(path)[1], data.stats)
    again = teach.batches(fresh, 8, jax.random.key(3))
    for batch in first:
        for one, other in zip(batch, leaves(next(again)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path):
    made = written.episodes()
    data = opened(written.lerobot_v2(tmp_path / "a", made))[1]
    directory = types.SimpleNamespace(path=tmp_path, writes=False)
    own_data.remember(directory, data)
    assert not (tmp_path / "dataset.json").exists(), "another host's"
    directory.writes = True
    own_data.remember(directory, data)
    kept = json.loads((tmp_path / "dataset.json").read_text())
    assert kept["format"] == "LeRobot v2.1" and kept["episodes"] == 3 and kept["steps"] == 18
    own_data.remember(directory, data)
    # The same in another format, in another place.
    again = opened(written.libero_hdf5(tmp_path / "b_demo.hdf5", made))[1]
    own_data.remember(directory, again)
    for change in ("state", "actions", "instruction"):
        other = [dict(episode) for episode in made]
        value = other[1][change]
        other[1][change] = "push" if change == "instruction" else value * np.float32(0.999)
        changed = opened(written.lerobot_v2(tmp_path / change, other))[1]
        with pytest.raises(endings.Failure, match=r"is another data set than .*dataset\.json"):
            own_data.remember(directory, changed)


def test_two_hosts_read_different_rows(tmp_path, monkeypatch):
    path = written.lerobot_v2(tmp_path / "data", written.episodes())
    settings, data = opened(path)
    examples = own_data.examples(settings, data, data.stats)
    whole = leaves(next(teach.batches(examples, 8, jax.random.key(0))))[-1]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts.append(leaves(next(teach.batches(examples, 8, jax.random.key(0))))[-1])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# ---- statistics ----------------------------------------------------------------------------------


def test_which_statistics_count(tmp_path):
    made = written.episodes()
    path = lerobot(tmp_path / "data", made)
    normalize.save(tmp_path / "norm_stats.json", normalize.identity(8, 7))
    rows = np.concatenate([episode["actions"] for episode in made])
    chosen = {
        "auto": dict(),
        "computed": dict(sft__dataset_statistics="computed"),
        "files": dict(sft__dataset_statistics="files"),
        "given": dict(model__norm_stats=str(tmp_path / "norm_stats.json")),
    }
    found = {name: opened(path, **fields)[1] for name, fields in chosen.items()}
    np.testing.assert_array_equal(found["auto"].stats.state.q01, found["computed"].stats.state.q01)
    np.testing.assert_allclose(found["files"].stats.actions.mean, rows.mean(0), atol=1e-6)
    assert np.abs(found["auto"].stats.actions.mean - rows.mean(0)).max() > 1e-3, "padded chunks"
    assert found["given"].stats.state.std.tolist() == [1.0] * 8
    assert found["auto"].where == f"{path}, computed over chunks of 5"
    assert found["files"].where == str(path / "meta" / "stats.json")
    assert found["given"].where == str(tmp_path / "norm_stats.json")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(model__delta_actions=True), "model.delta_actions=True normalises offsets"),
        (dict(model__norm_mode="quantile"), "has no q01 and q99"),
        (dict(sft__dataset_keys="state=joints"), "wants 'joints' for state"),
    ],
)
def test_files_that_bring_others_are_refused(fields, sentence, tmp_path):
    path = written.lerobot_v2(tmp_path / "data", written.episodes())
    with pytest.raises(ValueError, match=sentence):
        opened(path, sft__dataset_statistics="files", **fields)


# ---- what a user is told -------------------------------------------------------------------------


def test_what_was_found_is_said(tmp_path, capsys):
    path = written.lerobot_v2(
        tmp_path / "data", written.episodes(tasks=("push", "solve the probe"))
    )
    opened(path)
    out, err = capsys.readouterr()
    assert (
        f"demonstrations: LeRobot v2.1 at {path}, 3 episodes, 18 control steps, 2 tasks: push, "
        f"solve the probe; agentview = image, wrist = wrist_image, state = state, "
        f"actions = actions"
    ) in out
    assert f"note: 1 of 2 tasks in {path} are not played here: push" in err
    assert "gripper" not in err and "lies beside" not in err


def test_a_gripper_that_never_opens_is_said(tmp_path, capsys):
    made = written.episodes()
    for episode in made:
        episode["actions"][:, 6] = np.abs(episode["actions"][:, 6])
    opened(written.lerobot_v2(tmp_path / "data", made))
    said = capsys.readouterr().err
    assert (
        "never opens the gripper (its last entry is never below 0); suites read -1 as open" in said
    )


def test_actions_beside_what_follows_them(tmp_path, capsys):
    """As LIBERO's script stores them; the pairs are put right, and it is said."""
    made = written.episodes((5, 4))
    path = written.libero_hdf5(tmp_path / "a_demo.hdf5", made)
    generator = np.random.default_rng(0)
    for shift in (0, 1):
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                length = len(demo["actions"])
                joints = np.cumsum(generator.normal(size=(length + 1, 7)), axis=0)
                before = np.zeros((length, 20))
                before[:, 1:8] = joints[:-1]
                for name in ("states", "obs/joint_states"):
                    if name in demo:
                        del demo[name]
                demo["states"] = before
                demo["obs/joint_states"] = joints[shift : length + shift] + 1e-4
        _, data = opened(path)
        said = capsys.readouterr().err
        assert data.source.lengths.tolist() == [5 - shift, 4 - shift]
        assert ("in 2 episodes an action lies beside what follows it" in said) == bool(shift)
        numbers = data.source.numbers(0)
        np.testing.assert_array_equal(numbers.state_TQ, made[0]["state"][: 5 - shift])
        np.testing.assert_array_equal(numbers.actions_TA, made[0]["actions"][shift:])
        np.testing.assert_array_equal(data.source.images(0, 2), made[0]["images"][2])
        data.close()


def test_the_rate_that_a_user_gives(tmp_path):
    path = written.lerobot_v2(tmp_path / "data", written.episodes(), fps=10)
    with pytest.raises(ValueError, match=r"set sft\.dataset_hz=20"):
        opened(path)
    assert opened(path, sft__dataset_hz=20.0)[1].source.hz == 20
    with pytest.raises(ValueError, match=r"sft\.dataset_hz=10 is not the 20 Hz"):
        opened(path, sft__dataset_hz=10.0)


def test_a_suite_of_somebodys_own_with_other_cameras(tmp_path):
    spec = dataclasses.replace(SPEC, cameras=("front",), control_hz=10)
    path = written.lerobot_v2(tmp_path / "data", written.episodes(), fps=10)
    settings = settings_for(path)
    with pytest.raises(ValueError, match="no camera known as front of the suite; it has image, "):
        own_data.open_dataset(settings, spec)
    settings = settings_for(path, sft__dataset_keys="front=wrist_image")
    data = own_data.open_dataset(settings, spec)
    assert len(data.source.images(0, 0)) == 1


def test_prompts_that_do_not_fit(tmp_path):
    path = written.lerobot_v2(tmp_path / "data", written.episodes(tasks=("a b c " * 20,)))
    with pytest.raises(ValueError, match="max_token_len"):
        opened(path)


def test_bad_data_ends_with_code_2_and_closes_its_files(tmp_path, capsys):
    path = written.lerobot_v2(tmp_path / "data", written.episodes())
    (path / "data/chunk-001/episode_000002.parquet").unlink()
    with pytest.raises(SystemExit) as exit_, command.user_errors():
        opened(path)
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {path}/data/chunk-001/episode_000002.parquet is no file; ")


def test_a_picture_that_turns_out_damaged_ends_the_run(tmp_path, capsys):
    """Found while it learns: a sentence and exit code 2 all the same."""
    import pyarrow.parquet as pq

    path = written.lerobot_v2(tmp_path / "data", written.episodes())
    table = path / "data/chunk-000/episode_000000.parquet"
    columns = pq.read_table(table).to_pydict()
    columns["image"][2]["bytes"] = b"\x89PNG" + bytes(40)
    written._write(table, columns)
    settings, data = opened(path)
    examples = own_data.examples(settings, data, data.stats)
    examples.take(np.array([0, 1]))
    with pytest.raises(endings.Failure, match=r"image in row 2 of .* is no picture"):
        examples.take(np.array([0, 2]))
    with pytest.raises(SystemExit) as exit_, command.known_endings():
        examples.take(np.array([2]))
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_when_a_resumed_run_reads_its_data(tmp_path):
    raw = settings_for(tmp_path).raw
    assert own_data.is_read(raw, None) and own_data.is_read(raw, 0)
    assert not own_data.is_read(raw, 3), "it is taught already"
    together = settings_for(tmp_path, algorithm__sft_loss_weight=0.1).raw
    assert own_data.is_read(together, 3)
    assert not own_data.is_read(config.settings(probe.get_config()).raw, None)


def test_infos_of_a_run_are_plain(tmp_path):
    """Names in files are shown on one line, whatever characters they have."""
    path = written.lerobot_v2(tmp_path / "data", written.episodes(tasks=("a\n\x1b[31mb",)))
    _, data = opened(path)
    assert json.dumps(str(data.summary)).isascii() and str(data.summary).isprintable()
