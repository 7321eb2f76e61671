import json

import numpy as np
import pytest

from pirl_jax.policy import normalize


@pytest.fixture(scope="module")
def data(vectors):
    with np.load(vectors / "openpi" / "data_norm.npz") as opened:
        yield opened


def _stats(data, prefix):
    return normalize.Stats(*(data[f"{prefix}/{name}"] for name in ("mean", "std", "q01", "q99")))


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
@pytest.mark.parametrize("key", ["state", "actions"])
def test_normalize_equals_openpi(data, mode, key):
    stats = _stats(data, f"stats/{key}")
    x = data[f"norm/in_{key}"]
    np.testing.assert_allclose(
        normalize.normalize(x, stats, mode), data[f"norm/{mode}_{key}"], rtol=1e-12
    )


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
@pytest.mark.parametrize("key", ["state", "actions"])
def test_unnormalize_equals_openpi_beyond_the_statistics(data, mode, key):
    stats = _stats(data, f"stats/{key}")
    x = data[f"unnorm/{mode}_in_{key}"]
    assert x.shape[-1] == 32 > len(stats.mean)
    np.testing.assert_allclose(
        normalize.unnormalize(x, stats, mode), data[f"unnorm/{mode}_{key}"], rtol=1e-12
    )


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_long_statistics_are_cut(data, mode):
    stats = _stats(data, "stats32/state")
    out = normalize.normalize(data["norm/in_state"], stats, mode)
    np.testing.assert_allclose(out, data[f"norm/stats32_{mode}_state"], rtol=1e-12)
    np.testing.assert_allclose(
        normalize.unnormalize(out, stats, mode), data["norm/in_state"], atol=1e-12
    )


@pytest.mark.parametrize("key", ["state", "actions"])
def test_running_stats_equal_openpi(data, key):
    running = normalize.RunningStats()
    for i in range(4):
        running.update(data[f"running/{key}/batch{i}"])
    got, want = running.stats(), _stats(data, f"running/{key}")
    # openpi accumulates mean and mean of squares in float32.
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-6)
    np.testing.assert_allclose(got.std, want.std, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(got.q01, want.q01, rtol=1e-12)
    np.testing.assert_allclose(got.q99, want.q99, rtol=1e-12)


def test_running_stats_of_known_data():
    x = np.random.default_rng(0).normal(3.0, 2.0, (1000, 2))
    running = normalize.RunningStats()
    running.update(x[:400])
    running.update(x[400:])
    got = running.stats()
    np.testing.assert_allclose(got.mean, x.mean(axis=0))
    np.testing.assert_allclose(got.std, x.std(axis=0))
    # One bin and one lost sample per widening: within two ranks of the sorted data.
    ranks = np.stack([(x <= q).sum(axis=0) for q in (got.q01, got.q99)])
    assert np.all(np.abs(ranks - [[10], [990]]) <= 2)


def test_running_stats_need_two_samples():
    running = normalize.RunningStats()
    running.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        running.stats()


def test_openpi_file_round_trip(vectors, data, tmp_path):
    source = vectors / "openpi" / "norm_stats.json"
    stats = normalize.load(source)
    np.testing.assert_array_equal(stats.actions.q99, data["running/actions/q99"])
    normalize.save(tmp_path / "sub" / "norm_stats.json", stats)
    assert json.loads((tmp_path / "sub" / "norm_stats.json").read_text()) == json.loads(
        source.read_text()
    )


def test_file_without_quantiles_serves_zscore_only(tmp_path):
    entry = {"mean": [1.0], "std": [2.0], "q01": None, "q99": None}
    (tmp_path / "a.json").write_text(json.dumps({"norm_stats": {"state": entry, "actions": entry}}))
    stats = normalize.load(tmp_path / "a.json").state
    np.testing.assert_allclose(
        normalize.normalize(np.array([3.0]), stats, "zscore"), [1.0], atol=1e-6
    )
    with pytest.raises(ValueError, match="needs q01 and q99"):
        normalize.normalize(np.array([3.0]), stats, "quantile")


def test_wrong_input_says_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"no normalisation statistics at .*absent.json"):
        normalize.load(tmp_path / "absent.json")
    (tmp_path / "b.json").write_text('{"norm_stats": {"state": {}}}')
    with pytest.raises(ValueError, match="no statistics for actions"):
        normalize.load(tmp_path / "b.json")
    with pytest.raises(
        ValueError, match="norm_mode='minmax' does not exist; choose one of: zscore, quantile"
    ):
        normalize.normalize(np.zeros(1), normalize.Stats(np.zeros(1), np.ones(1)), "minmax")


ENTRY = {"mean": [0.0] * 3, "std": [1.0] * 3, "q01": [-1.0] * 3, "q99": [1] * 3}
UNLIKE = {
    "per step": ({"mean": [[0.0] * 3] * 10}, "mean of .* has 10 rows: statistics of each step"),
    "unlike lengths": ({"std": [1.0] * 4}, r"std of .* has shape \[4\] .* as the mean \(3\)"),
    "a text": ({"mean": "0.1"}, 'mean of .* is "0.1" and should be a list'),
    "texts": ({"q01": ["0.1"] * 3}, "q01 of .* is no list of finite numbers"),
    "true": ({"q01": [True] * 3}, "q01 of .* is no list of finite numbers"),
    "not finite": ({"q99": [1.0, float("nan"), 1.0]}, "q99 of .* is no list of finite numbers"),
    "digits": ({"mean": [10**400, 0, 0]}, "mean of .* is no list of finite numbers"),
    "no mean": ({"mean": None}, "has no mean"),
    "one of a pair": ({"mean": None, "std": None, "q01": None}, "has no q01"),
    "none": (dict.fromkeys(ENTRY), "has no mean and std"),
    "no dims": ({name: [] for name in ENTRY}, r"mean of .* has shape \[0\]"),
    "a list": ([1, 2], r"is \[1, 2\] and should be an object"),
}


@pytest.mark.parametrize("quantity", ["state", "actions"])
@pytest.mark.parametrize("name", UNLIKE)
def test_statistics_are_vectors_of_one_length_whatever_is_asked_of_them(tmp_path, name, quantity):
    change, said = UNLIKE[name]
    wrong = ENTRY | change if isinstance(change, dict) else change
    path = tmp_path / "these.json"
    path.write_text(
        json.dumps({"norm_stats": {"state": ENTRY, "actions": ENTRY} | {quantity: wrong}})
    )
    with pytest.raises(ValueError, match=said) as caught:
        normalize.load(path)
    assert str(path) in str(caught.value) and quantity in str(caught.value)


def test_delta_actions_by_hand():
    actions_BHA = np.ones((1, 2, 7), np.float32)
    state_BQ = np.arange(8.0)[None]
    delta = normalize.delta_actions(actions_BHA, state_BQ)
    np.testing.assert_array_equal(delta[0, 1], [1, 0, -1, -2, -3, -4, 1])
    np.testing.assert_array_equal(normalize.absolute_actions(delta, state_BQ), actions_BHA)
    assert delta.dtype == np.float32 and np.all(actions_BHA == 1)


def test_one_pair_is_enough_for_its_mode(tmp_path):
    path = tmp_path / "these.json"
    x = np.array([0.5, 0.0, -0.5])
    for fields, mode, other in (
        (("q01", "q99"), "quantile", "zscore"),
        (("mean", "std"), "zscore", "quantile"),
    ):
        entry = {field: ENTRY[field] for field in fields}
        path.write_text(json.dumps({"norm_stats": {"state": entry, "actions": entry}}))
        stats = normalize.load(path).state
        assert stats.dims == 3
        scaled = normalize.normalize(x, stats, mode)
        np.testing.assert_allclose(normalize.unnormalize(scaled, stats, mode), x, atol=1e-12)
        with pytest.raises(ValueError, match=f"'{other}' needs .*, which these statistics lack"):
            normalize.normalize(x, stats, other)
        normalize.save(tmp_path / "again.json", normalize.load(path))
        assert normalize.load(tmp_path / "again.json").state.dims == 3
