"""A policy as a library: load a checkpoint, act on one observation.

python docs/examples/act.py RUN_DIRECTORY
"""

import sys

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.policy import flow, observation
from pirl_jax.run import config, policies, recipes

run_directory = sys.argv[1]
settings = config.settings(recipes.load_run(run_directory))
mesh = meshes.make_mesh(devices=jax.devices()[:1])
params, stats = policies.load_policy(settings, run_directory, iteration=-1, mesh=mesh)
transform = policies.transform(settings, stats, instructions=[""])

# What a robot with two cameras and an 8-D state sees, as one row of a batch.
images = np.zeros((1, 2, 256, 256, 3), np.uint8)
state = np.zeros((1, 8), np.float32)
obs = observation.encode(transform, images, state, ["lift the red cube"])

prefix = flow.prefill(params, obs, settings.policy)
keys = jax.random.split(jax.random.key(0), 1)  # of the start noise, one per row
actions = flow.sample_actions(params, keys, prefix, settings.policy)
print(observation.decode(transform, np.asarray(actions), state)[0])  # [H,7] in robot units
