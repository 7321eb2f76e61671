"""The plan by role: what it says stays on a device is what lies there."""

import jax
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import placement
from pirl_jax.envs import base
from pirl_jax.learner import offload, publish
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import config, devices, plan, policies, shares, steps

ENV = base.EnvSpec("probe_conditioned", ("go",), 50, 8, 16)
RESIDENT = {"frozen weights": 100, "optimiser": 30, shares.PUBLISHED: 7, shares.KEPT: 5}
WORK = {shares.ROLLOUT: 50, "optimiser step": 20, shares.WRITING: 9, shares.READING: 11}


def of(rollout, actor, away=()):
    placed = placement.of_page("", rollout, actor, 8)
    return {share.devices: share for share in shares.of(placed, RESIDENT, WORK, away)}


def test_devices_need_what_their_roles_need():
    both = of("all", "all")[""]
    assert both.resident == RESIDENT and both.work == WORK and both.total == 142 + 50
    hybrid = of("4-7", "all")
    assert list(hybrid) == ["4-7", "0-3"]
    assert hybrid["4-7"].total == 142 + 50
    assert hybrid["0-3"].roles == "learn" and hybrid["0-3"].total == 130 + 20
    apart = of("2-5", "6-7")
    assert apart["6-7"].resident == {"frozen weights": 100, "optimiser": 30}
    assert apart["6-7"].work == {"optimiser step": 20}
    assert apart["2-5"].resident == {shares.PUBLISHED: 7, shares.KEPT: 5}
    assert apart["2-5"].work == {name: WORK[name] for name in shares.PLAYING}
    assert list(of("all", "6-7")) == ["6-7", "0-5"]


def test_weights_of_several_hosts_pass_through_learners_that_do_not_play():
    """All at once, at worst: the plan may not say less."""
    resident = {"optimiser": 30, shares.GATHERED: 70}
    work = {shares.ROLLOUT: 50, "optimiser step": 20}
    together = shares.of(placement.of_page("", "all", "all", 8), resident, work, ())
    assert [share.total for share in together] == [100 + 50]
    players, learners = shares.of(placement.of_page("", "4-7", "all", 8), resident, work, ())
    assert players.total == 100 + 50 and shares.PASSING not in players.work
    assert learners.resident == {"optimiser": 30} and learners.total == 30 + 70
    (learners, players) = shares.of(placement.of_page("", "2-5", "6-7", 8), resident, work, ())
    assert players.total == 70 + 50 and learners.total == 30 + 70


def test_what_is_away_makes_room_for_episodes_alone():
    assert of("all", "all", ("optimiser",))[""].total == max(142 - 30 + 50, 142 + 20)
    small = dict(WORK, **{"optimiser step": 45})
    one = shares.Share("", "play and learn", RESIDENT, small, ("optimiser",))
    assert one.total == 142 + 45
    text = "\n".join(one.lines())
    assert "on the host while episodes are played" in text


def test_what_plays_while_something_learns_needs_room_beside_it():
    placed = placement.of_page("", "4-7", "all", 8)
    found = shares.of(placed, RESIDENT, WORK, (), at_once=True)
    assert [share.total for share in found] == [142 + 50 + 20, 130 + 20]
    settings = settings_of(rollout__max_staleness=1, run__save_every=40)
    made = plan.measure(settings, devices.mesh(settings), 16, ENV, limit=1)
    assert made.at_once
    assert made.resident[shares.PUBLISHED] == made.resident["weights that train, float32"]


def settings_of(**changes):
    settings = config.settings(recipe.get_config())
    fixed = {
        "algorithm.microbatch_size": 8,
        "algorithm.ema_decay": 0.9,
        "algorithm.anchor_coef": 0.1,
        "rollout.prefix_cache": "host",
        "rollout.num_envs": 16,
    }
    return config.changed(settings, fixed | {n.replace("__", "."): x for n, x in changes.items()})


def on_device(device, *trees):
    """Bytes there, memory that two arrays share once."""
    found = {}
    for x in jax.tree.leaves(trees):
        for shard in x.addressable_shards:
            if shard.device == device:
                found[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(found.values())


@pytest.mark.parametrize(
    "rollout, actor, fsdp",
    [
        ("all", "all", 1),
        ("4-7", "all", 1),
        ("4-7", "all", 8),
        ("all", "all", 8),
        ("2-5", "6-7", 2),
    ],
)
def test_what_stays_on_a_device_is_what_the_plan_says(rollout, actor, fsdp, monkeypatch):
    """Hosts of four devices: eight that share weights lie on both."""
    monkeypatch.setattr(meshes, "spans_hosts", lambda mesh: mesh.shape["fsdp"] > 4)
    settings = settings_of(placement__rollout=rollout, placement__actor=actor, mesh__fsdp=fsdp)
    mesh = devices.mesh(settings)
    plays = devices.playing(settings, mesh)
    params = policies.fresh_params(settings, mesh, jax.random.key(0))
    state = steps.train_state(settings, params, mesh)
    published = publish.Publisher(steps.trainable(settings), mesh, plays)(state.params)
    made = plan.measure(settings, mesh, 16, ENV, limit=1)  # nothing is compiled
    assert (shares.GATHERED in made.resident) == (fsdp == 8)
    by_number = {}
    for share in made.shares:
        numbers = placement.parse(share.devices or "all", "") or range(8)
        by_number |= dict.fromkeys(numbers, share)
    counted = state.replace(step=())  # four bytes
    for number, share in by_number.items():
        there = on_device(jax.devices()[number], counted, published)
        assert there == sum(share.resident.values()), number


def test_away_there_is_as_much_less_as_the_plan_says():
    settings = settings_of(placement__offload="optimizer")
    mesh = devices.mesh(settings)
    params = policies.fresh_params(settings, mesh, jax.random.key(0))
    state = steps.train_state(settings, params, mesh).replace(step=())
    made = plan.measure(settings, mesh, 16, ENV, limit=1)
    away = offload.Offload(enabled=True).away(state)
    stays = [x for x in jax.tree.leaves(away) if x.sharding.memory_kind == "device"]
    goes = sum(made.resident[name] for name in made.away)
    there = on_device(jax.devices()[0], stays)
    # The counter of iterations counts with the optimiser, and stays.
    assert there == sum(made.resident.values()) - goes + 4


def test_auto_offloads_where_nothing_else_fits(monkeypatch):
    work = {shares.ROLLOUT: 100_000_000, "optimiser step": 10}
    monkeypatch.setattr(plan._Work, "needed", lambda self: work)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    fields = dict(algorithm__microbatch_size=4, algorithm__minibatch_size=4)
    settings = settings_of(placement__offload="auto", **fields)
    chosen, roomy = plan.choose(settings, mesh, 16, ENV)
    assert chosen.raw.placement.offload == "off" and not roomy.away
    chosen, tight = plan.choose(settings, mesh, 16, ENV, limit=roomy.total - 1)
    assert chosen.raw.placement.offload == "optimizer" and tight.total < roomy.total
    with pytest.raises(ValueError, match=r"this fits: --config\.placement\.offload=auto$"):
        plan.choose(settings_of(**fields), mesh, 16, ENV, limit=roomy.total - 1)
    with pytest.raises(ValueError, match="no choice of microbatch"):
        plan.choose(settings, mesh, 16, ENV, limit=10_000)
