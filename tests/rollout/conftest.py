"""A pool of simulators in this process whose answers are easy to predict."""

import numpy as np
import pytest

from pirl_jax.envs import base


@pytest.fixture
def make_pool():
    return Pool


class Pool:
    """Episode (task, s) lasts s + 1 chunks of 3 steps; reward 1 per chunk; success where s is even,
    else truncated.

    The state shows task, s and the number of chunks so far.  Slots are ready in the order of their
    requests, or in the order of `hurry`.  Requests (reset or send, counted from 0) whose number is
    in `faults` lose their simulator.
    """

    spec = base.EnvSpec(
        "fake", ("push", "pick", "place"), num_init_states=6, max_episode_steps=18, image_size_px=2
    )

    def __init__(self, num_envs, faults=(), hurry=None, num_workers=None):
        self.slot_workers = np.arange(num_envs) % (num_workers or num_envs)
        self.num_envs, self.log, self.faults, self.hurry = (
            num_envs,
            [],
            set(faults),
            hurry or (lambda slot: 0),
        )
        self.playing, self.answer, self.requests = {}, {}, 0

    def reset(self, slots, tasks, init_states):
        for slot, task, state in zip(slots, tasks, init_states, strict=True):
            self.log.append(("reset", int(slot)))
            self._post(slot, (task, state, 0), reward=0.0, num_steps=0)

    def send(self, slots, actions, record):
        self.log.append(("send", tuple(map(int, slots))))
        assert len(actions) == len(slots)
        for slot, with_frames in zip(slots, record, strict=True):
            task, state, chunks = self.playing[int(slot)]
            frames = [np.full((2, 2, 3), chunks, np.uint8)] * 3 if with_frames else None
            self._post(slot, (task, state, chunks + 1), reward=1.0, num_steps=3, frames=frames)

    def _post(self, slot, playing, **answer):
        assert int(slot) not in self.answer, "a slot has at most one request under way"
        self.playing[int(slot)] = playing
        answer["lost"] = self.requests in self.faults
        self.requests += 1
        self.answer[int(slot)] = playing, answer.pop("frames", None), answer

    def get(self, batch, slots=None):
        assert 0 < batch <= len(self.answer), "this would wait for ever"
        slots = np.array(sorted(self.answer, key=self.hurry)[:batch]) if slots is None else slots
        assert len(slots) == batch
        self.log.append(("get", tuple(map(int, slots))))
        return slots, self._step(slots)

    def ready(self, wanted, timeout_s):
        return len(self.answer)

    def counters(self):
        return {"restarts": len(self.faults), "recycled": 0, "lost_episodes": len(self.faults)}

    def _step(self, slots):
        (states, frames, answers) = zip(
            *[self.answer.pop(int(slot)) for slot in slots], strict=True
        )
        over = np.array([chunks > state for _, state, chunks in states])
        even = np.array([state % 2 == 0 for _, state, _ in states])
        return base.TimeStep(
            images=np.zeros((len(slots), 2, 2, 2, 3), np.uint8),
            state=np.pad(np.array(states, np.float32), ((0, 0), (0, 5))),
            reward=np.array([a["reward"] for a in answers]),
            num_steps=np.array([a["num_steps"] for a in answers]),
            terminated=over & even,
            truncated=over & ~even,
            frames=list(frames) if any(frames) else None,
            thrown=np.zeros(len(slots), bool),
            lost=np.array([a["lost"] for a in answers]),
        )
