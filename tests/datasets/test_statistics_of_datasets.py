"""Statistics of demonstrations: computed in one pass as openpi's, or those that the files bring."""

import json

import numpy as np
import pytest

from pirl_jax.datasets import chunks, episodes, lerobot_stats, opened, summary
from pirl_jax.policy import normalize
from tests import written_datasets as written

pytest.importorskip("pyarrow", reason="the extra datasets (pyarrow) is not installed")
pytest.importorskip("h5py", reason="the extra datasets (h5py) is not installed")

WANTED = episodes.Wanted(cameras=("agentview", "wrist"), state_dim=8, action_dim=7, control_hz=20)
HORIZON = 4


def examined(path, delta_actions=False):
    source = opened.open_source(path, WANTED)
    return source, summary.examine(source, HORIZON, delta_actions, lambda count: None)


def chunked(made, delta_actions):
    """Every chunk of every episode, all at once."""
    found = []
    for episode in made:
        index = np.arange(len(episode["actions"]))
        rows = [np.minimum(index + step, index[-1]) for step in range(HORIZON)]
        chunk = np.stack([episode["actions"][row] for row in rows], axis=1)
        if delta_actions:
            chunk[..., :6] -= episode["state"][:, None, :6]
        found.append(chunk)
    return np.concatenate(found).reshape(-1, 7).astype(np.float64)


@pytest.mark.parametrize("piece", [2, 4096])
@pytest.mark.parametrize("delta_actions", [False, True])
def test_they_are_of_the_chunks_that_are_learned(delta_actions, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "PIECE", piece)
    made = written.episodes((30, 20, 25))
    _, found = examined(written.lerobot_v2(tmp_path / "data", made), delta_actions)
    whole = {
        "state": np.concatenate([episode["state"] for episode in made]).astype(np.float64),
        "actions": chunked(made, delta_actions),
    }
    for name, rows in whole.items():
        stats = getattr(found.computed, name)
        np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(stats.std, rows.std(0), rtol=1e-10)
        # By openpi's histograms, which may lose a few where they widen (policy/normalize.py).
        assert ((rows < stats.q01).mean(0) <= 0.03).all()
        assert ((rows > stats.q99).mean(0) <= 0.03).all()
        assert (stats.q01 <= np.quantile(rows, 0.05, axis=0)).all()
        assert (stats.q99 >= np.quantile(rows, 0.95, axis=0)).all()


def test_they_do_not_depend_on_the_format(tmp_path):
    made = written.episodes()
    places = (
        written.lerobot_v2(tmp_path / "v2", made),
        written.lerobot_v3(tmp_path / "v3", made, "image"),
        written.libero_hdf5(tmp_path / "a_demo.hdf5", made),
    )
    found = [examined(path)[1] for path in places]
    for other in found[1:]:
        for quantity in ("state", "actions"):
            for field in normalize.FIELDS:
                one, two = (
                    getattr(getattr(s.computed, quantity), field) for s in (found[0], other)
                )
                np.testing.assert_array_equal(one, two)
    assert str(found[0]) == "3 episodes, 18 control steps, 1 task: solve the probe"


def test_whether_the_gripper_opens(tmp_path):
    made = written.episodes((4, 4))
    assert examined(written.lerobot_v2(tmp_path / "a", made))[1].opens
    for episode in made:
        episode["actions"][:, 6] = np.abs(episode["actions"][:, 6])
    assert not examined(written.lerobot_v2(tmp_path / "b", made))[1].opens


# ---- of the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [written.lerobot_v2, written.lerobot_v3])
def test_files_bring_their_own(make, tmp_path):
    """Of v2.1 they are joined: weighted by the lengths of the episodes."""
    made = written.episodes((9, 4, 6))
    source, _ = examined(make(tmp_path / "data", made, "image"))
    stats, where = lerobot_stats.read(source, "zscore", delta_actions=False)
    for name in written.STATED:
        rows = np.concatenate([episode[name] for episode in made]).astype(np.float64)
        np.testing.assert_allclose(getattr(stats, name).mean, rows.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(getattr(stats, name).std, rows.std(0), rtol=1e-10)
    assert where.endswith("episodes_stats.jsonl" if make is written.lerobot_v2 else "stats.json")


def test_quantiles_of_newer_files(tmp_path):
    made = written.episodes()
    source, _ = examined(written.lerobot_v3(tmp_path / "data", made, "image"))
    stats, _ = lerobot_stats.read(source, "quantile", delta_actions=False)
    rows = np.concatenate([episode["actions"] for episode in made]).astype(np.float64)
    np.testing.assert_allclose(stats.actions.q99, np.quantile(rows, 0.99, 0))


def rewritten(path, change):
    tree = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(change(tree) or tree) + "\n")


OF_STATE = "observation.state"
REFUSED = [
    ("v3", "zscore", True, None, "model.delta_actions=True normalises offsets"),
    ("v2", "quantile", False, None, "has no q01 and q99, which model.norm_mode='quantile' needs"),
    ("v3", "zscore", False, lambda tree: tree.pop(OF_STATE), "no statistics of observation.state"),
    ("v3", "zscore", False, lambda tree: tree[OF_STATE].pop("std"), "has no std"),
    ("v3", "zscore", False, lambda tree: tree[OF_STATE].update(mean=3), "should be a list"),
    ("v3", "zscore", False, lambda tree: tree[OF_STATE].update(mean=["a"]), "no list of numbers"),
    ("v3", "zscore", False, lambda tree: tree[OF_STATE].update(std=[1.0]), "one vector as long"),
    ("v2", "zscore", False, lambda tree: tree.update(stats=[]), "should be an object"),
    ("v2", "zscore", False, lambda tree: tree["stats"]["state"].pop("count"), "has no count"),
    ("hdf5", "zscore", False, None, "has neither stats.json nor episodes_stats.jsonl"),
]


@pytest.mark.parametrize("format_, mode, delta_actions, change, sentence", REFUSED)
def test_those_of_another_quantity_are_refused(
    format_, mode, delta_actions, change, sentence, tmp_path
):
    made = written.episodes((4, 5))
    if format_ == "hdf5":
        source, _ = examined(written.libero_hdf5(tmp_path / "a_demo.hdf5", made))
    else:
        make = {"v2": written.lerobot_v2, "v3": written.lerobot_v3}[format_]
        source, _ = examined(make(tmp_path / "data", made, "image"))
    if change is not None:
        name = {"v2": "episodes_stats.jsonl", "v3": "stats.json"}[format_]
        rewritten(tmp_path / "data" / "meta" / name, lambda tree: change(tree) and None)
    with pytest.raises(ValueError) as error:
        lerobot_stats.read(source, mode, delta_actions)
    text = str(error.value)
    assert sentence in text and "\n" not in text
    assert "sft.dataset_statistics=computed" in text or normalize.REMEDY in text
