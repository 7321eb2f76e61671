"""RLinf's asynchronous PPO: keys that only it reads, and what they become."""

import pytest

from pirl_jax.run.rlinf import formulas, losses

ASYNCHRONOUS = {
    "algorithm.loss_type": "decoupled_actor_critic",
    "algorithm.staleness_threshold": 2,
    "algorithm.behave_weight_threshold": 5.0,
}
READ = {
    "algorithm.staleness_threshold": (losses.staleness, {"rollout.max_staleness": 2}),
    "algorithm.behave_weight_threshold": (
        losses.importance_cap,
        {"algorithm.importance_cap": 5.0},
    ),
    "algorithm.clip_ratio_c": (losses.dual_clip, {"algorithm.clip_ratio_c": 2.0}),
}


@pytest.mark.parametrize("key", READ)
def test_what_asynchronous_ppo_alone_reads(key):
    formula, wanted = READ[key]
    source = formulas.Source(ASYNCHRONOUS | {"algorithm.clip_ratio_c": 2.0})
    assert formula(source, source.values[key]) == wanted
    other = formulas.Source(source.values | {"algorithm.loss_type": "actor_critic"})
    with pytest.raises(formulas.NotCarriedError, match=r"asynchronous PPO|does not read it"):
        formula(other, other.values[key])


def test_its_dual_clip_is_on_unless_the_file_says_otherwise():
    name = ASYNCHRONOUS["algorithm.loss_type"]
    want = {"algorithm.loss": "ppo", "algorithm.clip_ratio_c": 3.0}
    assert losses.loss(formulas.Source(ASYNCHRONOUS), name) == want
    given = formulas.Source(ASYNCHRONOUS | {"algorithm.clip_ratio_c": 4.0})
    assert losses.loss(given, name) == want | {"algorithm.clip_ratio_c": 4.0}
    assert losses.loss(given, "actor_critic") == {"algorithm.loss": "ppo"}
