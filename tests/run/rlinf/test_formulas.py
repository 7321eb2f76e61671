"""Units: RLinf's counts per GPU, per node, per step of the optimiser, and ours."""

import pytest

from pirl_jax.run.rlinf import formulas

ROLLOUT = {
    "env.train.total_num_envs": 128,
    "env.train.rollout_epoch": 1,
    "env.train.max_episode_steps": 240,
    "actor.model.num_action_chunks": 5,
    "actor.global_batch_size": 2048,
    "algorithm.update_epoch": 2,
}


def of(function, **values):
    """The formula's fields of a configuration; `__` is a dot."""
    keys = ROLLOUT | {name.replace("__", "."): value for name, value in values.items()}
    return function(formulas.Source(keys), next(iter(values.values()), None))


def test_simulators_are_of_a_node_and_episodes_of_all():
    assert of(formulas.simulators, cluster__num_nodes=4) == {"rollout.num_envs": 32}
    got = of(formulas.episodes, env__train__rollout_epoch=3)
    assert got == {"rollout.episodes_per_iteration": 384}
    resets = {"env__train__auto_reset": True, "env__train__max_steps_per_rollout_epoch": 720}
    assert of(formulas.episodes, **resets) == {"rollout.episodes_per_iteration": 384}


def test_roles_on_the_same_devices_need_nothing():
    same = {"cluster__component_placement__actor,env,rollout": "0-7"}
    assert of(formulas.placement, **same) == {}
    assert of(formulas.placement, cluster__num_nodes=2, **same) == {}


def of_roles(**roles):
    keys = {f"cluster__component_placement__{role}": text for role, text in roles.items()}
    return of(formulas.placement, **keys)


def test_roles_on_devices_of_their_own_are_carried_over():
    assert of_roles(env="0-3", rollout="4-7", actor="0-7") == {
        "placement.env": "0-3",
        "placement.rollout": "4-7",
        "placement.actor": "0-7",
    }
    assert of_roles(**{"env,rollout": "0-3", "actor": "all"}) == {
        "placement.env": "0-3",
        "placement.rollout": "0-3",
        "placement.actor": "all",
    }


@pytest.mark.parametrize(
    "roles, said",
    [
        (dict(actor="0-7", critic="8-9"), "no role is called 'critic'"),
        (dict(actor="0-7", rollout="0-3:0-1"), "here is one process per host; drop ':0-1'"),
        (
            dict(actor="0-7", env__node_group="cpu", env__placement="0"),
            "names a group of nodes, but here every host has the same devices",
        ),
    ],
)
def test_a_placement_that_has_no_counterpart_is_left_with_its_reason(roles, said):
    with pytest.raises(formulas.NotCarriedError, match=said):
        of_roles(**roles)


def test_numbers_over_several_nodes_are_left():
    roles = {"actor": "0-15", "rollout": "0-7"}
    keys = {f"cluster__component_placement__{role}": text for role, text in roles.items()}
    with pytest.raises(formulas.NotCarriedError, match="count over all nodes"):
        of(formulas.placement, cluster__num_nodes=2, **keys)


def test_a_warm_up_of_the_critic_is_rounded_up_to_iterations():
    # 128 episodes of 48 decisions: 3 minibatches, 2 epochs.
    got = of(formulas.critic_warmup, actor__optim__critic_warmup_steps=30)
    assert got == {"algorithm.critic_warmup_iterations": 5}
    got = of(formulas.critic_warmup, actor__optim__critic_warmup_steps=31)
    assert got == {"algorithm.critic_warmup_iterations": 6}


def test_the_smaller_limit_of_the_runner_counts_and_minus_one_is_none():
    for epochs, steps, want in ((1000, -1, 1000), (1000, 20, 20), (-1, 20, 20), (5, 20, 5)):
        got = of(formulas.iterations, runner__max_epochs=epochs, runner__max_steps=steps)
        assert got == {"num_iterations": want}
    assert of(formulas.iterations, runner__max_epochs=-1) == {}
    got = of(formulas.save_every, runner__save_interval=-1, runner__max_epochs=70)
    assert got == {"run.save_every": 70}


@pytest.mark.parametrize(
    "values, per_task",
    [
        ({"env__eval__total_num_envs": 500}, 0),
        ({"env__eval__total_num_envs": 64}, 7),
        ({"env__eval__total_num_envs": 128, "env__eval__max_steps_per_rollout_epoch": 960}, 0),
        ({"env__eval__total_num_envs": 90, "env__train__task_suite_name": "libero_90"}, 1),
    ],
)
def test_an_evaluation_counts_episodes_of_a_task(values, per_task):
    assert of(formulas.evaluated, **values) == {"eval.episodes_per_task": per_task}


def test_rates():
    cosine = {"actor__optim__lr_scheduler": "cosine", "actor__optim__lr": 2e-6}
    got = of(formulas.least_rate, actor__optim__min_lr=1e-6, **cosine)
    assert got == {"optim.min_lr_ratio": 0.5}
    got = of(formulas.warmup, actor__optim__lr_warmup_steps_ratio=0.1, runner__max_epochs=300)
    assert got == {"optim.warmup_steps": 30}
    with pytest.raises(formulas.NotCarriedError, match="constant"):
        of(formulas.decay, actor__optim__decay_steps=10)


def test_sharding():
    key = "actor__fsdp_config__sharding_strategy"
    assert of(formulas.sharding, **{key: "no_shard"}) == {"mesh.fsdp": 1}
    got = of(formulas.sharding, **{key: "hybrid_shard", "actor__fsdp_config__fsdp_size": 4})
    assert got == {"mesh.fsdp": 4}
    with pytest.raises(formulas.NotCarriedError, match=r"mesh\.fsdp=N"):
        of(formulas.sharding, **{key: "full_shard"})
