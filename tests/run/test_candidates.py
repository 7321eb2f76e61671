"""What a recipe leaves to the memory plan: the order of choices, and which of them are compiled."""

import dataclasses

import jax
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.models import remat
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import candidates, config, plan

OPEN = {
    "algorithm.microbatch_size": 0,
    "algorithm.minibatch_size": 128,
    "rollout.prefix_cache": "auto",
    "model.gradient_checkpointing": "auto",
}


def _settings(**changes):
    fields = OPEN | {name.replace("__", "."): x for name, x in changes.items()}
    return config.changed(config.settings(recipe.get_config()), fields)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(1, 1, jax.devices()[:1])


def _chosen(one):
    raw = one.raw
    return (
        one.prefix_cache,
        raw.model.gradient_checkpointing,
        raw.algorithm.microbatch_size,
    )


def _plan(one, size, limit=100, **changes):
    """Needs `size` bytes for its microbatch."""
    made = plan.Plan(
        resident={"weights": 10},
        work={"rollout": 5, plan.OF_MICROBATCH: size},
        host=0,
        limit=limit,
        host_limit=1,
        microbatch_size=one.raw.algorithm.microbatch_size,
        prefix_cache=one.prefix_cache,
        gradient_checkpointing=one.raw.model.gradient_checkpointing,
    )
    return dataclasses.replace(made, **changes)


def _bytes(one):
    """A row keeps half as much with every policy that computes more again."""
    return one.raw.algorithm.microbatch_size * 64 // 2 ** candidates.computed_again(one)


def test_every_policy_has_a_cost_and_more_of_it_takes_less_memory():
    assert list(remat.COST) == list(remat.POLICIES)
    assert list(remat.POLICIES)[-1] == remat.LEAST
    assert min(remat.COST, key=remat.COST.get) == remat.FASTEST != remat.LEAST


def test_checkpointing_is_among_the_choices_and_prefixes_are_kept_to_the_last(mesh):
    order = [_chosen(one) for one in candidates.candidates(_settings(), mesh)]
    assert order[0] == ("host", "dots", 128) and len(set(order)) == len(order)
    assert {policy for _, policy, _ in order} == set(remat.POLICIES)
    assert order.index(("host", "none", 64)) < order.index(("host", "full", 64))
    # What lies between two policies: the one that keeps more, for fewer rows at a time.
    assert order.index(("host", "dots", 64)) < order.index(("host", "full", 128))
    first_without = order.index(("recompute", "dots", 128))
    assert all(cache == "host" for cache, _, _ in order[:first_without])
    assert all(cache == "recompute" for cache, _, _ in order[first_without:])


def test_what_the_recipe_says_stands(mesh):
    said = {"rollout__prefix_cache": "host", "model__gradient_checkpointing": "full"}
    found = candidates.candidates(_settings(algorithm__microbatch_size=8, **said), mesh)
    assert [_chosen(one) for one in found] == [("host", "full", 8)]


def test_a_policy_is_chosen_with_the_microbatch(mesh):
    """Not the smallest microbatch that keeps most, and not the largest that keeps least."""
    asked = []

    def need(one):
        asked.append(_chosen(one))
        return _plan(one, _bytes(one), limit=10 + 64 * 32)

    found = candidates.candidates(_settings(), mesh)
    chosen, made = plan._first_that_fits(found, need)
    assert _chosen(chosen) == ("host", "dots", 64) and made.fits
    assert asked == [("host", "dots", 128), ("host", "dots", 64)]


def test_what_cannot_fit_is_not_compiled(mesh):
    asked = []

    def need(one):
        asked.append(_chosen(one))
        return _plan(one, _bytes(one), limit=16)

    chosen, _ = plan._first_that_fits(candidates.candidates(_settings(), mesh), need)
    assert chosen is None
    # One compilation tells of a policy how many rows it would have to do with.
    for cache in ("host", "recompute"):
        policies = [policy for kept, policy, _ in asked if kept == cache]
        assert sorted(policies) == sorted(remat.POLICIES)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": 2},
        {"work": {"rollout": 1000, plan.OF_MICROBATCH: 1}},
        {"resident": {"weights": 1000}, "work": {}},
        {"work": {}, "refused": "rollout: RESOURCE_EXHAUSTED"},
    ],
)
def test_what_no_choice_changes_is_asked_once_per_cache(changes, mesh):
    asked = []

    def need(one):
        asked.append(one.prefix_cache)
        return _plan(one, 1, **changes)

    chosen, _ = plan._first_that_fits(candidates.candidates(_settings(), mesh), need)
    assert chosen is None and asked == ["host", "recompute"]


def test_prefixes_that_a_host_cannot_keep_are_told_of(mesh):
    """Else nobody would know why an update takes so long."""

    def need(one):
        host = 3 * plan.GIB if one.prefix_cache == "host" else 0
        return _plan(one, 1, host=host, host_limit=2 * plan.GIB)

    _, made = plan._first_that_fits(candidates.candidates(_settings(), mesh), need)
    assert "to keep them needs 3.0 GiB, and this host can spare 2.0 GiB" in str(made)
    _, made = plan._first_that_fits(
        candidates.candidates(_settings(rollout__prefix_cache="recompute"), mesh), need
    )
    assert made.prefix_cache == "recompute" and not made.remedy


def test_a_refusal_rules_out_what_keeps_more(mesh):
    """A compiler that refuses tells no bytes."""
    refused = {"work": {}, "refused": "microbatch: RESOURCE_EXHAUSTED"}
    by_choice = {_chosen(one): one for one in candidates.candidates(_settings(), mesh)}
    failed = by_choice["host", "dots", 16]
    made = _plan(failed, 0, **refused)
    told = {}
    for choice, one in by_choice.items():
        told[choice] = plan._rules_out(failed, made, one)
    for policy in ("none", "dots"):
        assert told["host", policy, 32] and told["host", policy, 16]
        assert not told["host", policy, 8]
    assert not told["host", "full", 32] and not told["recompute", "none", 32]


def test_where_time_is_estimated_the_fastest_checkpointing_is_taken(mesh, monkeypatch):
    """What is written and read again may cost more than what is computed again."""
    seconds = {policy: 1.0 for policy in remat.POLICIES} | {"none": 3.0, "dots": 0.5}
    asked = []

    def measure(one, *args, **kwargs):
        asked.append(_chosen(one))
        policy = one.raw.model.gradient_checkpointing
        fits = policy != "dots" or seconds["dots"] > 0.1
        return _plan(one, 1 if fits else 1000, seconds=seconds[policy])

    monkeypatch.setattr(plan, "measure", measure)
    settings = _settings(algorithm__microbatch_size=16)
    chosen, made = plan.choose(settings, mesh, 16, None)
    assert _chosen(chosen) == ("host", "dots", 16) and made.seconds == 0.5
    assert len(asked) == len(remat.POLICIES)
    seconds["dots"] = 0.1  # and does not fit
    seconds["full"] = 0.7
    chosen, made = plan.choose(settings, mesh, 16, None)
    assert _chosen(chosen) == ("host", "full", 16) and made.seconds == 0.7


def test_what_fits_with_a_change_names_it(mesh, monkeypatch):
    def measure(one, *args, **kwargs):
        return _plan(one, _bytes(one), limit=10 + 64 * 4)

    monkeypatch.setattr(plan, "measure", measure)
    settings = _settings(algorithm__microbatch_size=16, model__gradient_checkpointing="none")
    with pytest.raises(plan.DoesNotFit, match="this fits: --config") as error:
        plan.choose(settings, mesh, 16, None)
    assert error.value.changes == {"algorithm.microbatch_size": 0}
    settings = _settings(algorithm__microbatch_size=8, model__gradient_checkpointing="none")
    settings = config.changed(settings, {"algorithm.minibatch_size": 8})
    with pytest.raises(plan.DoesNotFit) as error:
        plan.choose(settings, mesh, 16, None)
    # Fewer rows would do, too, and are the smaller change.
    assert error.value.changes == {"algorithm.microbatch_size": 0}


def test_the_least_of_all_computes_everything_again(mesh):
    least = candidates.least(_settings(), mesh)
    assert _chosen(least) == ("host", remat.LEAST, 1)


def test_without_a_plan_it_is_the_fastest_policy():
    """Teaching has none."""
    assert _settings().policy.network.remat == remat.FASTEST


def test_where_copies_of_several_hosts_do_not_fit_the_remedy_is_a_host_s_devices(monkeypatch):
    mesh = meshes.make_mesh(1, 8)
    settings = _settings(algorithm__microbatch_size=4)
    monkeypatch.setattr(plan, "measure", lambda one, *_, **__: _plan(one, 1000))
    with pytest.raises(ValueError, match=r"fits: raise mesh\.fsdp over more devices$"):
        plan.choose(settings, mesh, 16, None)
    monkeypatch.setattr(meshes, "spans_hosts", lambda mesh: True)
    said = (
        r"rollout and update need .* GiB; no choice of .* fits: with mesh\.fsdp=8, over several"
        r" hosts, each device that plays holds all parameters; set mesh\.fsdp=8, the devices of a"
        r" host, which share them there$"
    )
    with pytest.raises(ValueError, match=said):
        plan.choose(settings, mesh, 16, None)
