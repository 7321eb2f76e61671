"""A pool of simulators with the settings of most tests: patient, forgiving, nothing recycled."""

from pirl_jax.envs.pool import pool

SETTINGS = {
    "timeout_s": 60.0,
    "restarts_per_hour": 20,
    "recycle_episodes": 0,
    "recycle_growth_gb": 0.0,
    "render_devices": (),
}


def start(make_env, num_envs, num_workers=None, **settings):
    """EnvPool; num_workers: None: a worker for each env.  settings: on top of SETTINGS."""
    if num_workers is None:
        num_workers = num_envs
    return pool.EnvPool(make_env, num_envs, num_workers, **(SETTINGS | settings))
