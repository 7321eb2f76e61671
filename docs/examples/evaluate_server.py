"""Evaluate a foreign policy server: anything that speaks openpi's protocol, without its weights.

python docs/examples/evaluate_server.py ws://HOST:PORT [EPISODES]

The loop that `pirl evaluate --policy ws://HOST:PORT` runs for many simulators at once, by hand for
one: openpi's own client, LIBERO's keys, the first five of the actions that come back.
"""

import sys
import urllib.parse

import numpy as np
from openpi_client import image_tools, websocket_client_policy

from pirl_jax.envs import base
from pirl_jax.envs.tabletop import suite as tabletop

CHUNK = 5  # actions that are executed before the policy looks again
SIZE_PX = 224  # of what openpi's policies see


def question(step: base.TimeStep, instruction: str) -> dict:
    """What openpi's policies of LIBERO read."""
    agentview, wrist = [image_tools.resize_with_pad(i, SIZE_PX, SIZE_PX) for i in step.images]
    return {
        "observation/image": agentview,
        "observation/wrist_image": wrist,
        "observation/state": step.state,
        "prompt": instruction,
    }


def play(env: base.Env, policy: websocket_client_policy.WebsocketClientPolicy, start: int) -> bool:
    """One episode of task 0; whether it succeeds."""
    step = env.reset(task=0, init_state=start)
    while not (step.terminated or step.truncated):
        answer = policy.infer(question(step, env.spec.instructions[0]))
        step = env.step_chunk(np.asarray(answer["actions"])[:CHUNK])
    return bool(step.terminated)


if __name__ == "__main__":
    address = urllib.parse.urlsplit(sys.argv[1])
    episodes = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    policy = websocket_client_policy.WebsocketClientPolicy(address.hostname, address.port)
    print("the server says:", policy.get_server_metadata())
    env = tabletop.make(image_size_px=128)
    # Start states that no training of ours has seen.
    wins = [play(env, policy, start) for start in range(800, 800 + episodes)]
    env.close()
    print(f"{env.spec.instructions[0]}: {sum(wins)} of {episodes} episodes")
