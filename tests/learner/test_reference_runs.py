"""Whole training iterations of the reference (h_e2e.npz), twice in a row: its analytic network and
its scripted simulators, our sampler, collector, advantages, objective and optimiser -> rollout,
advantages, gradients, final weights.

Where we choose otherwise by default, the reference's choice is passed in: the value at the rollout
is the mean over the denoise steps (Q11), a decision weighs time limit / control steps of its
trajectory and the loss is divided by all rows (Q17), the rows go into the recorded minibatches
(Q28), rewards are the recorded ones (Q8), the joint log-prob is a mean (Q10), and the optimiser
after the critic warm-up is new and primed with a stale gradient (Q27).
"""

import dataclasses
import functools
import json

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, spec, types
from pirl_jax.envs import base
from pirl_jax.learner import objective, update
from pirl_jax.learner import state as states
from pirl_jax.monitor import timeline
from pirl_jax.policy import flow, noise, normalize, observation, tokenizer
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import collector
from pirl_jax.rollout import stream as streams

EPOCHS, T, B, CHUNK = (
    2,
    4,
    6,
    5,
)  # rollout epochs, decisions, simulators, control steps of a decision
COLUMNS, MINIBATCH = EPOCHS * B, 24
FILE = "rlinf/h_e2e.npz"
WHOLE_EPISODES = ["ppo_pi0_sde", "ppo_pi05_vlm", "grpo_filter", "grpo_nofilter_token"]
STREAMS = [
    "ppo_flow_noise_autoreset",
    "ppo_sde_autoreset_standard",
]  # simulators that reset themselves and never stop
TOLERANCE = dict(rtol=1e-4, atol=1e-5)


class Recorded:
    """One case of the file: settings of ours, and what happened in it."""

    def __init__(self, file, case):
        self.file, self.case = file, case
        meta = json.loads(str(file[f"{case}/meta"]))
        self.policy, self.noise_of = analytic_network.policy(meta["pi"]), meta["pi"]
        self.params, self.fixed = analytic_network.weights(file, f"{case}/in/w0.")
        self.algorithm, optim = meta["cfg"]["algorithm"], meta["cfg"]["actor"]["optim"]
        self.optim = page.Optim(
            lr=optim["lr"],
            value_lr=optim["value_lr"],
            b1=optim["adam_beta1"],
            b2=optim["adam_beta2"],
            eps=optim["adam_eps"],
            weight_decay=optim["weight_decay"],
            clip_grad=optim["clip_grad"],
            schedule=optim.get("lr_scheduler", "constant"),
            decay_steps=optim.get("total_training_steps", 0),
            min_lr_ratio=optim.get("min_lr_rate", 0.0),
        )
        same = (
            "adv_type",
            "group_size",
            "filter_rewards",
            "rewards_lower_bound",
            "rewards_upper_bound",
            "gamma",
            "gae_lambda",
            "clip_ratio_low",
            "clip_ratio_high",
            "value_clip",
            "huber_delta",
            "entropy_bonus",
        )
        level = {"chunk_level": "chunk", "action_level": "action", "token_level": "token"}[
            self.algorithm["logprob_type"]
        ]
        self.update = page.Algorithm(
            update_epochs=self.algorithm["update_epoch"],
            minibatch_size=MINIBATCH,
            microbatch_size=MINIBATCH // 2,
            logprob_type=level,
            **{name: self.algorithm[name] for name in same},
        )

    def __call__(self, name):
        return self.file[f"{self.case}/{name}"]

    def level(self, iteration):
        anneal = self.noise_of["noise_anneal"]
        return (
            noise.annealed(*self.noise_of["noise_params"], iteration)
            if anneal
            else self.noise_of["noise_level"]
        )

    def calls(self, iteration):
        """[EPOCHS, T + 1] numbers of the ordinary policy calls; and the calls that valued the last
        observations of episodes that ended in the chunk before such a call, by its number."""
        kind = self(f"in/it{iteration}.call_kind")
        return np.flatnonzero(kind == 0).reshape(EPOCHS, T + 1), {
            i - 1: i for i in np.flatnonzero(kind == 1)
        }

    @functools.cached_property
    def _sample(self):
        @jax.jit
        def sample(params, state, draws, chains, level):
            prefix = analytic_network.prefix(state, self.fixed, self.policy)
            level_B = jnp.full(len(state), level, jnp.float32)
            chain, actions = flow.integrate(params, *draws, prefix, level_B, self.policy)
            values = [
                flow.denoise_step(
                    params,
                    prefix,
                    None,
                    chains[:, j],
                    jnp.full(len(state), j),
                    level_B,
                    self.policy,
                ).value
                for j in range(self.policy.model.num_steps)
            ]
            return chain.replace(value=sum(values) / len(values)), actions, prefix

        return sample

    def sample(self, params, iteration, number, state=None, rows=slice(None)):
        """A recorded policy call: our sampler with the recorded noise -> Chain (its value the mean
        over the steps), actions, prefix.  number: of the call, or of the call of each row."""
        get = lambda name, where=f"in/it{iteration}.": self(f"{where}call_{name}")  # noqa: E731
        at = (number, rows)
        noise_JBHA = (
            np.moveaxis(get("noise"), 2, 1)[at]
            if np.ndim(number)
            else np.moveaxis(get("noise")[number], 0, 1)
        )
        draws = analytic_network.randomness(
            np.moveaxis(noise_JBHA, 1, 0), get("denoise_inds")[at], self.policy
        )
        state = get("state")[at] if state is None else state
        return self._sample(
            params, state, draws, get("chains", f"out/it{iteration}.")[at], self.level(iteration)
        )


@pytest.fixture(scope="module")
def file(vectors):
    with np.load(vectors / FILE) as opened:
        yield opened


@pytest.fixture(autouse=True)
def analytic(monkeypatch):
    analytic_network.install(monkeypatch)


# ---- the rollout -----------------------------------------------------------------------------


LOCKSTEP = page.Rollout(num_groups=1, lockstep=True)


class Pool:
    """Simulators that answer what was recorded.  Episode (task = epoch, init state = simulator)."""

    num_envs = B
    slot_workers = np.arange(B)
    spec = base.EnvSpec(
        "recorded",
        ("do it",) * EPOCHS,
        num_init_states=B,
        max_episode_steps=T * CHUNK,
        image_size_px=2,
    )

    def __init__(self, recorded, iteration):
        self.recorded = lambda name, where="out": recorded(f"{where}/it{iteration}.{name}")
        self.first, self.at, self.waiting = recorded.calls(iteration)[0], {}, {}

    def reset(self, slots, tasks, init_states):
        for slot, epoch, env in zip(slots, tasks, init_states, strict=True):
            self._post(int(slot), epoch, env, 0)

    def send(self, slots, actions, record=None):
        for slot, action in zip(slots, actions, strict=True):
            epoch, env, c = self.at[int(slot)]
            np.testing.assert_allclose(
                action, self.recorded("env_actions")[epoch * T + c, env], **TOLERANCE
            )
            self._post(int(slot), epoch, env, c + 1)

    def _post(self, slot, epoch, env, c):
        self.at[slot] = epoch, env, c
        chunk = epoch * T + c - 1
        over = lambda name: bool(c) and bool(self.recorded(name)[chunk, env].any())  # noqa: E731
        self.waiting[slot] = (
            self.recorded("call_state", "in")[self.first[epoch, c], env],
            self.recorded("env_rewards")[chunk, env].sum() if c else 0.0,
            CHUNK if c else 0,
            over("env_terminations"),
            over("env_truncations"),
        )

    def get(self, batch, slots):
        state, reward, steps, terminated, truncated = map(
            np.array, zip(*[self.waiting.pop(int(s)) for s in slots], strict=True)
        )
        images = np.zeros((len(slots), 2, 2, 2, 3), np.uint8)
        return slots, base.TimeStep(
            images=images,
            state=state,
            reward=reward,
            num_steps=steps,
            terminated=terminated,
            truncated=truncated & ~terminated,
            thrown=np.zeros(len(slots), bool),
            lost=np.zeros(len(slots), bool),
        )


def collect(recorded, params, iteration):
    """Our collector over whole episodes; the reference goes on after success and masks."""
    to_model = observation.Transform(
        tokenizer.ByteTokenizer(),
        normalize.identity(8, 7),
        norm_mode="zscore",
        delta_actions=False,
        discrete_state=False,
        image_size_px=2,
        resize="host",
        max_token_len=8,
        action_dim=10,
        env_action_dim=7,
    )
    first = recorded.calls(iteration)[0]

    def explore(params, key, id_B, obs):
        episode_B, c_B = id_B // T, id_B % T
        number = first[episode_B // B, c_B]
        return recorded.sample(params, iteration, number, obs.state[:, :8], episode_B % B)

    actor = actors.Actor(
        to_model, ("do it",) * EPOCHS, CHUNK, explore, exploit=None, put=lambda x: x
    )
    episodes = [streams.Episode(epoch, env) for epoch in range(EPOCHS) for env in range(B)]
    playing = streams.Stream(Pool(recorded, iteration), episodes, LOCKSTEP, 1)
    book = collector.collect(actor, params, None, playing, timeline.Timers())
    return book.rollout(playing.results)


def stream(recorded, params, iteration):
    """What self-resetting simulators give: full columns of decisions, several trajectories one
    after the other in each.  The reference adds the discounted value of an episode's last
    observation to its reward, after a time limit or always; that is a bootstrap, so we call these
    ends truncated."""
    first, last_observations = recorded.calls(iteration)
    grids = {name: np.zeros((T, COLUMNS), np.float32) for name in ("reward", "value", "next_value")}
    terminated, truncated, rows = np.zeros((T, COLUMNS), bool), np.zeros((T, COLUMNS), bool), {}
    for epoch, c in np.ndindex(EPOCHS, T + 1):
        columns, number, chunk = (
            slice(epoch * B, (epoch + 1) * B),
            first[epoch, c],
            epoch * T + c - 1,
        )
        chain, _, prefix = jax.device_get(recorded.sample(params, iteration, number))
        if c < T:
            grids["value"][c, columns] = chain.value
            rows |= {
                (epoch * B + env, c): jax.tree.map(lambda x, env=env: x[env], (chain, prefix))
                for env in range(B)
            }
        if c == 0:
            continue
        over = {
            name: recorded(f"out/it{iteration}.env_{name}")[chunk].any(-1)
            for name in ("terminations", "truncations")
        }
        bootstrapped = over["truncations"] | (
            over["terminations"] & (recorded.algorithm.get("bootstrap_type") == "always")
        )
        final = chain.value
        if number in last_observations:
            final = recorded.sample(params, iteration, last_observations[number])[0].value
        ended = over["terminations"] | over["truncations"]
        grids["reward"][c - 1, columns] = recorded(f"out/it{iteration}.env_rewards")[chunk].sum(-1)
        grids["next_value"][c - 1, columns] = np.where(ended, final, chain.value)
        terminated[c - 1, columns], truncated[c - 1, columns] = ended & ~bootstrapped, bootstrapped
    order = sorted(rows)
    chain, prefix = jax.tree.map(lambda *leaves: np.stack(leaves), *[rows[key] for key in order])
    return types.Rollout(
        context=prefix,
        chain=chain,
        decision_R=np.array([c for _, c in order]),
        episode_R=np.array([e for e, _ in order]),
        **{f"{name}_CE": x for name, x in grids.items()},
        terminated_CE=terminated,
        truncated_CE=truncated,
        valid_CE=np.ones((T, COLUMNS), bool),
    )


def check_rollout(recorded, rollout, iteration):
    """Chains, log-probs and values of every decision that counts."""
    c, e = rollout.decision_R, rollout.episode_R
    number, env = recorded.calls(iteration)[0][e // B, c], e % B
    get = lambda name: recorded(f"out/it{iteration}.{name}")  # noqa: E731
    chains, j_RU = get("call_chains")[number, env], np.asarray(rollout.chain.j)
    for x, shift in ((rollout.chain.x, 0), (rollout.chain.x_next, 1)):
        np.testing.assert_allclose(
            x, np.take_along_axis(chains, (j_RU + shift)[:, :, None, None], 1), **TOLERANCE
        )
    log_prob = get("call_prev_logprobs")[number, env]
    np.testing.assert_allclose(rollout.chain.log_prob, log_prob, rtol=1e-4, atol=1e-4)
    if recorded.policy.model.add_value_head:
        np.testing.assert_allclose(
            rollout.chain.value, get("call_prev_values")[number, env, 0], **TOLERANCE
        )
    if (
        f"{recorded.case}/out/it{iteration}.proc_loss_mask" in recorded.file.files
        and not recorded.update.filter_rewards
    ):
        np.testing.assert_array_equal(rollout.valid_CE, get("proc_loss_mask")[..., 0])


def check_rows(recorded, data, rollout, iteration):
    """Advantages of the rows that have weight, returns, and which rows the reward filter leaves."""
    where = rollout.decision_R, rollout.episode_R
    get = lambda name: recorded(f"out/it{iteration}.proc_{name}")[..., 0][where]  # noqa: E731
    keep = data.weight > 0
    np.testing.assert_allclose(data.advantage[keep], get("advantages")[keep], rtol=1e-3, atol=1e-4)
    if recorded.update.uses_critic:
        np.testing.assert_allclose(data.return_, get("returns"), rtol=1e-4, atol=1e-4)
    if recorded.update.filter_rewards:
        np.testing.assert_array_equal(keep, get("loss_mask"))
        assert not keep.all()


# ---- the update ------------------------------------------------------------------------------


def reference_weights(recorded, data, rollout, iteration):
    """Time limit over the control steps of the trajectory; rows that are filtered stay without
    weight."""
    name = f"out/it{iteration}.proc_loss_mask_sum"
    if f"{recorded.case}/{name}" not in recorded.file.files:
        return data.replace(weight=np.ones(len(data.weight), np.float32))
    steps_R = recorded(name)[..., 0][rollout.decision_R, rollout.episode_R]
    return data.replace(weight=np.float32(np.where(data.weight > 0, T * CHUNK / steps_R, 0.0)))


def minibatches(recorded, data, rollout, iteration):
    """The recorded minibatches as two microbatches each; the reference's masked rows are our
    padding."""
    row = np.full((T, COLUMNS), -1)
    row[rollout.decision_R, rollout.episode_R] = np.arange(len(data.weight))
    order = row.reshape(-1)[recorded(f"in/it{iteration}.shuffle_id")]
    for part in order.reshape(-1, 2, MINIBATCH // 2):
        yield [objective.take(data, np.maximum(index, 0), np.float32(index >= 0)) for index in part]


def log_prob_fn(recorded):
    return lambda params, chain, context, anchor=None: (
        *flow.chain_log_prob(params, chain, context, recorded.policy),
        0.0,
    )


def check_first_gradient(recorded, params, microbatches, iteration, freeze_policy=False):
    def loss(params, batch):
        return (
            objective.loss(log_prob_fn(recorded), recorded.update, params, batch, freeze_policy)[0]
            / MINIBATCH
        )

    gradient = jax.jit(jax.grad(loss))
    grads = jax.tree.map(np.add, *[gradient(params, batch) for batch in microbatches])
    want = spec.flatten(
        analytic_network.weights(recorded.file, f"{recorded.case}/out/it{iteration}.step0.grad.")[0]
    )
    grads = spec.flatten(grads)
    assert want.keys() == (
        {path for path in grads if path.startswith("value_head/")}
        if freeze_policy
        else grads.keys()
    )
    for path, x in want.items():
        np.testing.assert_allclose(grads[path], x, rtol=1e-3, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("case", reference_files.having(FILE, WHOLE_EPISODES + STREAMS))
def test_two_iterations(file, case):
    recorded, mesh = Recorded(file, case), meshes.make_mesh(1, 1, jax.devices()[:1])
    state = states.create(recorded.params, recorded.optim, lambda path: True, mesh)
    updater = update.Updater(
        log_prob_fn(recorded),
        recorded.update,
        recorded.optim,
        lambda path: True,
        mesh,
        normalizer=MINIBATCH,
    )
    for iteration in range(2):
        rollout = (stream if case in STREAMS else collect)(recorded, state.params, iteration)
        check_rollout(recorded, rollout, iteration)
        cfg = recorded.update
        data = objective.with_advantages(
            rollout, dataclasses.replace(cfg, bootstrap_truncated=case in STREAMS)
        )
        check_rows(recorded, data, rollout, iteration)
        data = reference_weights(recorded, data, rollout, iteration)
        batches = list(minibatches(recorded, data, rollout, iteration))
        check_first_gradient(recorded, jax.device_get(state.params), batches[0], iteration)
        for step, microbatches in enumerate(batches * cfg.update_epochs):
            state, metrics = updater.minibatch(state, microbatches)
            want = recorded(f"out/it{iteration}.step{step}.grad_norm")
            np.testing.assert_allclose(
                metrics["grad_norm"], want, rtol=3e-4, err_msg=f"{iteration} {step}"
            )
            rates = [metrics["lr"], metrics["value_lr"]][: 1 + cfg.uses_critic]
            np.testing.assert_allclose(
                rates, recorded(f"out/it{iteration}.step{step}.lr"), rtol=1e-5
            )
        state = state.replace(iteration=state.iteration + 1)
        after = spec.flatten(
            analytic_network.weights(file, f"{case}/out/it{iteration}.w_after.")[0]
        )
        for path, x in spec.flatten(state.params).items():
            np.testing.assert_allclose(x, after[path], rtol=1e-4, atol=2e-5, err_msg=path)


@reference_files.only_complete
def test_the_critic_warmup(file):
    """RLinf warms up for three of the four optimiser steps of its first iteration, we for whole
    iterations; so the last step is taken as one of a second iteration.  At the end of the warm-up
    it builds a new optimiser, whose moments it primes with the gradient of the last warm-up step,
    while its counter stays 0 (Q27).  With that optimiser put in by hand every weight agrees; ours
    goes on with the moments that the value head has."""
    recorded, mesh = (
        Recorded(file, "ppo_cps_ignore_last_critic_warmup"),
        meshes.make_mesh(1, 1, jax.devices()[:1]),
    )
    cfg = dataclasses.replace(recorded.update, critic_warmup_iterations=1)
    state = states.create(recorded.params, recorded.optim, lambda path: True, mesh)
    updater = update.Updater(
        log_prob_fn(recorded), cfg, recorded.optim, lambda path: True, mesh, normalizer=MINIBATCH
    )
    before = None
    for iteration in range(2):
        rollout = collect(recorded, state.params, iteration)
        check_rollout(recorded, rollout, iteration)
        data = objective.with_advantages(rollout, cfg)
        check_rows(recorded, data, rollout, iteration)
        data = reference_weights(recorded, data, rollout, iteration)
        batches = list(minibatches(recorded, data, rollout, iteration)) * cfg.update_epochs
        check_first_gradient(
            recorded,
            jax.device_get(state.params),
            batches[0],
            iteration,
            freeze_policy=iteration == 0,
        )
        for step, microbatches in enumerate(batches):
            if (iteration, step) == (0, 3):
                opt_state = primed(before, state.opt_state, recorded.optim)
                state = state.replace(iteration=state.iteration + 1, opt_state=opt_state)
            before = jax.device_get(state.opt_state)
            state, metrics = updater.minibatch(state, microbatches)
            want = recorded(f"out/it{iteration}.step{step}.grad_norm")
            np.testing.assert_allclose(
                metrics["grad_norm"], want, rtol=3e-4, err_msg=f"{iteration} {step}"
            )
            want = recorded(f"out/it{iteration}.step{step}.lr")
            np.testing.assert_allclose(
                [metrics["lr"], metrics["value_lr"]][: len(want)], want, rtol=1e-5
            )
        after = spec.flatten(
            analytic_network.weights(file, f"{recorded.case}/out/it{iteration}.w_after.")[0]
        )
        for path, x in spec.flatten(state.params).items():
            np.testing.assert_allclose(x, after[path], rtol=1e-4, atol=2e-5, err_msg=path)


def primed(before, after, optim):
    """A new Adam that has seen the last gradient of another one once, and does not know it."""
    (_, before, _), (clip, adam, decay) = before, jax.device_get(after)
    last = jax.tree.map(
        lambda old, new: (new - optim.b1 * old) / (1 - optim.b1), before.mu, adam.mu
    )
    mu = jax.tree.map(lambda g: np.float32((1 - optim.b1) * g**1), last)
    nu = jax.tree.map(lambda g: np.float32((1 - optim.b2) * g**2), last)
    return clip, adam._replace(count=np.zeros((), np.int32), mu=mu, nu=nu), decay
