import dataclasses

import numpy as np
import pytest

from pirl_jax.policy import normalize
from pirl_jax.weights import assets, safetensors


def make_stats(state_dim=8, action_dim=7, scale=1.0):
    def one(dim):
        return normalize.Stats(
            np.arange(dim) * scale, np.ones(dim), np.full(dim, -1.0), np.full(dim, 2.0)
        )

    return normalize.NormStats(one(state_dim), one(action_dim))


def assert_equal(a, b):
    for x, y in ((a.state, b.state), (a.actions, b.actions)):
        for field in dataclasses.fields(normalize.Stats):
            np.testing.assert_array_equal(getattr(x, field.name), getattr(y, field.name))


@pytest.mark.parametrize(
    "target, location, places",
    [
        ("openpi_jax", "params", 1),
        ("openpi_torch", "", 2),
        ("openpi_torch", "model.safetensors", 2),
        ("pirl", "checkpoints/7/state", 1),
    ],
)
def test_what_is_saved_is_found_from_where_the_weights_lie(tmp_path, target, location, places):
    paths = assets.save(tmp_path, make_stats(), target)
    place = tmp_path / location
    if place.suffix:
        place.touch()
    else:
        place.mkdir(parents=True, exist_ok=True)
    found, where = assets.find(place)
    assert_equal(found, make_stats())
    assert len(paths) == places and where in map(str, paths)


def test_openpis_own_checkpoint_has_its_statistics(vectors):
    found, _ = assets.find(vectors / "openpi" / "orbax_pi05_tiny" / "3" / "params")
    assert_equal(found, normalize.load(vectors / "openpi" / "norm_stats.json"))


def test_rlinfs_places(tmp_path):
    normalize.save(tmp_path / "physical-intelligence" / "libero" / "norm_stats.json", make_stats())
    assert_equal(assets.find(tmp_path)[0], make_stats())
    weights = tmp_path / "actor" / "model_state_dict" / "full_weights.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert_equal(assets.find(weights)[0], make_stats())


def test_several_data_sets_want_a_choice(tmp_path):
    normalize.save(tmp_path / "assets" / "droid" / "norm_stats.json", make_stats(scale=3))
    normalize.save(tmp_path / "assets" / "libero" / "norm_stats.json", make_stats())
    with pytest.raises(
        ValueError, match="assets/droid/norm_stats.json, assets/libero/norm_stats.json.*--asset-id"
    ):
        assets.find(tmp_path)
    assert_equal(assets.find(tmp_path, "libero")[0], make_stats())
    assert assets.find(tmp_path, "aloha") is None


@pytest.mark.parametrize(
    "file, state, action",
    [
        ("policy_preprocessor_step_5_normalizer_processor", "observation.state", "action"),
        ("model", "normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"),
    ],
)
def test_lerobots_places(tmp_path, file, state, action):
    stats = make_stats()
    tensors = {
        f"{name}.{field.name}": getattr(of, field.name).astype(np.float32)
        for name, of in ((state, stats.state), (action, stats.actions))
        for field in dataclasses.fields(normalize.Stats)
    }
    path = tmp_path / f"{file}.safetensors"
    safetensors.write(
        path, {name: (x.shape, x.dtype) for name, x in tensors.items()}, iter(tensors.values()), {}
    )
    found, where = assets.find(tmp_path)
    assert_equal(found, stats)
    assert where == str(path)


@pytest.mark.parametrize(
    "change, mode, line",
    [
        (
            {"state_dim": 7},
            "zscore",
            "state.mean has 7 dims and the robot has 8; state.std has 7 dims and the robot has 8",
        ),
        ({"action_dim": 6}, "quantile", "actions.q01 has 6 dims and the robot has 7"),
        ({"scale": np.nan}, "zscore", "state.mean is not finite; actions.mean is not finite"),
    ],
)
def test_a_mismatch_is_an_error(change, mode, line):
    with pytest.raises(ValueError, match=line):
        assets.check(make_stats(**change), mode)


def test_quantiles_must_exist_where_they_are_used():
    stats = make_stats()
    without = dataclasses.replace(
        stats, actions=dataclasses.replace(stats.actions, q01=None, q99=None)
    )
    assets.check(without, "zscore")
    with pytest.raises(
        ValueError, match="actions has no q01 and q99, which norm_mode='quantile' needs"
    ):
        assets.check(without, "quantile")
    swapped = dataclasses.replace(
        stats, state=dataclasses.replace(stats.state, q01=stats.state.q99, q99=stats.state.q01)
    )
    with pytest.raises(ValueError, match="state.q99 lies below q01"):
        assets.check(swapped, "quantile")


def test_the_report_counts_what_lies_outside():
    stats = make_stats()
    stats.state.q99[3] = -1.0 + 1e-6
    state_BS = np.zeros((4, 8))
    state_BS[0, :2] = 5.0
    text = assets.report(stats, "quantile", state_BS)
    assert "quantile, state 8 dims, actions 7 dims" in text
    assert "state dims [3] hardly move" in text and "actions dims" not in text
    # 2 values of the first row, and the 4 of the dimension whose q99 is now below 0.
    assert (
        "18.8% of 32 state values lie outside q01..q99 (by dim: 25%, 25%, 0%, 100%, 0%, 0%, 0%, 0%)"
        in text
    )
    with pytest.raises(ValueError, match="state.q01 has 8 dims and the robot has 9"):
        assets.report(stats, "quantile", np.zeros((1, 9)))
