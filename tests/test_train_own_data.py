"""What a user types: pirl train with sft.dataset, from the files to reinforcement learning."""

import contextlib
import functools
import io
import json
import shutil

import numpy as np
import pytest

from pirl_jax.monitor import log
from pirl_jax.policy import normalize
from pirl_jax.run import teach
from tests import test_train
from tests import written_datasets as written
from tests.test_train import one_device  # noqa: F401

pytest.importorskip("pyarrow", reason="the extra datasets (pyarrow) is not installed")
pytest.importorskip("h5py", reason="the extra datasets (h5py) is not installed")

pytestmark = pytest.mark.slow
# As tests/test_train.py's run in small, but for the length.
TABLETOP = dict(
    model__size="tiny",
    model__image_size_px=16,
    env__image_size_px=32,
    sft__steps=4,
    sft__batch_size=8,
    eval__episodes_per_task=2,
    eval__num_videos=0,
    eval__every=0,
    algorithm__update_epochs=1,
    algorithm__minibatch_size=32,
    algorithm__microbatch_size=32,
    algorithm__sft_loss_weight=0.1,
)
tabletop = functools.partial(test_train.start, "tabletop_small.py", num_iterations=1, **TABLETOP)


def probe(directory, num_iterations, data, *arguments, **fields):
    whole = dict(sft__dataset=data, sft__steps=3, sft__batch_size=8, model__norm_stats="")
    whole |= dict(algorithm__sft_loss_weight=0.1, eval__baseline=False, eval__every=0)
    return test_train.probe(directory, num_iterations, *arguments, **(whole | fields))


def rows_of(run):
    rows = log.read(run, timing=False)
    return [{name: row[name] for name in row if not name.startswith("run/")} for row in rows]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """A run that the scripted expert teaches, and the episodes that it saw."""
    folder = tmp_path_factory.mktemp("scripted")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        collect = teach.collect
        patch.setattr(teach, "collect", lambda *args: seen.append(collect(*args)) or seen[-1])
        run = tabletop(folder / "run", sft__demonstrations=2)
    return run, seen[0]


def test_a_dataset_teaches_what_its_episodes_teach(scripted, tmp_path):
    """Written out, read, learned, and then reinforced: bit by bit the run of the same episodes."""
    run, episodes = scripted
    data = written.lerobot_v3(tmp_path / "data", episodes, "image")
    stats = run / "assets" / "norm_stats.json"
    mine = tabletop(
        tmp_path / "run",
        sft__demonstrations=0,
        sft__dataset=data,
        model__norm_stats=stats,
    )
    for one, other in zip(rows_of(mine), rows_of(run), strict=True):
        assert one == other
    assert rows_of(mine)[0]["sft/loss"] > 0 and rows_of(mine)[2]["actor/sft_loss"] > 0
    test_train.assert_equal_states(test_train.saved(mine, 1), test_train.saved(run, 1))
    table = json.loads((mine / "table.json").read_text())
    assert list(table["rows"]) == ["SFT", "PPO"]
    assert (mine / "assets/norm_stats.json").read_bytes() == stats.read_bytes()


def test_a_checkpoint_is_taught_with_its_own_statistics(scripted, tmp_path):
    """Few-shot SFT of weights that are there; or with those of the data, where that is chosen."""
    run, episodes = scripted
    data = written.libero_hdf5(tmp_path / "lift_the_red_cube_demo.hdf5", episodes)
    fields = dict(sft__demonstrations=0, sft__dataset=data, model__checkpoint=run)
    fields |= dict(num_iterations=0, algorithm__sft_loss_weight=0.0)
    stats = {}
    said = {}
    for chosen in ("auto", "computed"):
        folder = tmp_path / chosen
        with contextlib.redirect_stdout(io.StringIO()) as out:
            tabletop(folder, sft__dataset_statistics=chosen, **fields)
        said[chosen] = out.getvalue()
        stats[chosen] = normalize.load(folder / "assets" / "norm_stats.json")
    theirs = normalize.load(run / "assets" / "norm_stats.json")
    np.testing.assert_array_equal(stats["auto"].actions.mean, theirs.actions.mean)
    assert np.abs(stats["computed"].actions.mean - theirs.actions.mean).max() > 1e-6
    assert f"; statistics from {run}\n" in said["auto"]
    assert f"; statistics from {data}, computed over chunks of 10\n" in said["computed"]
    before = test_train.saved(run, 1)
    after = test_train.saved(tmp_path / "auto", 0)
    changed = [name for name in after if not np.array_equal(after[name], before[name])]
    assert any("action_out_proj" in name for name in changed), "it has learned"


def test_a_run_with_a_dataset_resumes_bit_for_bit(tmp_path):
    """Co-training draws by iteration and seed, whatever was drawn before it was stopped."""
    data = written.lerobot_v2(tmp_path / "data", written.episodes())
    whole = probe(tmp_path / "whole", 2, data)
    parts = probe(tmp_path / "parts", 1, data)
    # SFT is over: only co-training reads it now.
    probe(parts, 2, data, "--resume", "auto")
    test_train.assert_equal_states(test_train.saved(whole, 2), test_train.saved(parts, 2))


def test_demonstrations_go_on_teaching_while_episodes_are_played(tmp_path):
    """A resumed run takes the batches of demonstrations that the uninterrupted one takes."""
    data = written.lerobot_v2(tmp_path / "data", written.episodes())
    fields = dict(rollout__max_staleness=1, run__save_every=2)
    whole = probe(tmp_path / "whole", 3, data, **fields)
    rows = [row for row in log.read(whole) if "actor/loss" in row]
    assert [row["async/staleness_max"] for row in rows] == [0, 1, 0]
    assert all(row["actor/sft_loss"] > 0 for row in rows)
    state = test_train.saved(whole, 3)
    shutil.rmtree(whole / "checkpoints" / "3")
    probe(whole, 3, data, "--resume", "auto", **fields)
    test_train.assert_equal_states(test_train.saved(whole, 3), state)


def test_bad_data_ends_before_anything_is_written(tmp_path, capsys):
    data = written.lerobot_v2(tmp_path / "data", written.episodes(), fps=10)
    with pytest.raises(SystemExit) as exit_:
        probe(tmp_path / "run", 1, data)
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and "set sft.dataset_hz=20" in said and "Traceback" not in said
    assert not (tmp_path / "run" / "config.json").exists()
    keys = "agentview=top,wrist=wrist_image"
    with pytest.raises(SystemExit) as exit_:
        probe(tmp_path / "run", 1, data, sft__dataset_hz=20, sft__dataset_keys=keys)
    assert exit_.value.code == 2
    assert "sft.dataset_keys wants 'top' for agentview" in capsys.readouterr().err
