"""From settings to simulators: which LIBERO may play, and what workers do first is tried once."""

import pathlib
import types

import pytest

from pirl_jax.core import page
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import files, identity, preflight
from pirl_jax.run import config, simulators

PINNED = {
    "libero": {"folder": "/venv/libero", "version": identity.PINNED_NAME, **identity.PINNED},
    "mujoco": {"folder": "/venv/mujoco", "version": "3.3.7"},
}
FOREIGN = PINNED | {"libero": PINNED["libero"] | {"sha256_of_task_map": "0", "version": None}}


def settings(**env):
    fields = page.Page().as_dict()
    fields["env"].update(env)
    return config.settings(fields)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Questions to processes of their own; asked.found is the answer."""

    class Asked(list):
        found = FOREIGN

    asked = Asked()

    def ask(question, variables):
        asked.append((question, variables))
        return asked.found

    monkeypatch.setattr(preflight, "ask", ask)
    monkeypatch.setattr(files, "find_assets", lambda assets: pathlib.Path(assets or tmp_path))
    simulators._ask.cache_clear()
    yield asked
    simulators._ask.cache_clear()


def test_a_foreign_libero_is_refused_unless_any_will_do(asked):
    with pytest.raises(ValueError, match=r"is not hf-libero .* or set env\.libero=any$"):
        simulators.played(settings())
    assert simulators.played(settings(libero="any")) == FOREIGN, "and stands in the results"


def test_it_is_asked_once_in_the_environment_of_the_workers(asked, monkeypatch):
    asked.found = PINNED
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    for _ in range(3):
        assert simulators.played(settings()) == PINNED
    simulators.played(settings(render_devices=(2,)))
    assert [variables.get("MUJOCO_EGL_DEVICE_ID") for _, variables in asked] == [None, "2"]
    assert all(variables["NUMBA_NUM_THREADS"] == "1" for _, variables in asked)
    assert all(variables["MUJOCO_GL"] == "egl" for _, variables in asked)


@pytest.mark.parametrize("suite", ["tabletop", "probe_constant"])
def test_others_have_no_libero(suite, asked):
    assert simulators.played(settings(suite=suite)) is None
    assert not asked


def test_a_folder_of_tasks_is_tried_where_it_is_played(asked, tmp_path, monkeypatch):
    asked.found = PINNED
    monkeypatch.setattr(simulators.custom, "shortened", lambda folder: "")
    simulators.played(settings(suite=f"{tmp_path}/tasks", tasks=(3, 1)))
    simulators.played(settings(tasks=(3, 1)))
    (own, _), (stock, _) = asked
    assert (own.folder, own.tasks) == (f"{tmp_path}/tasks", (3, 1))
    assert (stock.folder, stock.tasks) == (None, ())


def test_light_pictures_are_made_of_tasks_that_exist(monkeypatch):
    """The others are refused in a sentence where start states are chosen."""
    from pirl_jax.envs.libero import light  # brings mujoco

    suite = types.SimpleNamespace(spec=types.SimpleNamespace(num_tasks=2), setup="ab".__getitem__)
    asked = []
    monkeypatch.setattr(simulators, "env_factory", lambda settings: lambda: suite)
    monkeypatch.setattr(light, "missing", lambda setups: asked.append(setups) or [])
    simulators._prepare_light_pictures(settings(render_quality="light", tasks=(1, 7)))
    simulators._prepare_light_pictures(settings(render_quality="light"))
    assert asked == [["b"], ["a", "b"]]


# ---- where they draw ---------------------------------------------------------------------------


def drawn(suite="tabletop", env="", **fields):
    page_fields = page.Page().as_dict()
    page_fields["env"].update(suite=suite, tasks=(), **fields)
    page_fields["placement"]["env"] = env
    return simulators.drawing(config.settings(page_fields))


@pytest.fixture
def egl_devices(monkeypatch):
    """EGL's list of a machine with two cards, in the other order than CUDA's."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [backends.Device(0, 1), backends.Device(1, 0), backends.Device(2, None, True)]
    asked = []
    monkeypatch.setattr(backends, "devices", lambda: asked.append(0) or found)
    for cached in (simulators._egl_devices, simulators._without_gpu):
        cached.cache_clear()
    yield asked
    for cached in (simulators._egl_devices, simulators._without_gpu):
        cached.cache_clear()


def test_simulators_draw_where_the_placement_says(egl_devices):
    assert drawn(env="0") == ("egl", (1,)) and drawn(env="all") == ("egl", (1, 0))
    assert drawn(env="cpu") == ("egl", (2,))
    assert drawn(env="0") == ("egl", (1,)) and len(egl_devices) == 3, "the driver is asked once"
    with pytest.raises(ValueError, match=r"^placement\.env='0-2': CUDA device 2 is to draw"):
        drawn(env="0-2")


def test_without_a_placement_simulators_draw_as_ever(egl_devices):
    assert drawn() == ("egl", ()) and drawn(render_devices=(1, 0)) == ("egl", (1, 0))
    assert drawn("probe_action", env="7") == (None, ()), "a probe draws nothing"
    assert not egl_devices


def test_the_renderers_of_the_placement_reach_the_pool(egl_devices, monkeypatch):
    asked = []

    def pool(*args, render_devices, **kwargs):
        asked.append(render_devices)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulators.pools, "EnvPool", pool)
    monkeypatch.setattr(simulators, "_check_machine", lambda *args: asked.append(args) or {})
    fields = page.Page().as_dict()
    fields["env"].update(suite="tabletop", num_workers=2)
    fields["placement"]["env"] = "all"
    opened = simulators.open_envs(config.settings(fields), 4, lambda: None)
    with pytest.raises(KeyboardInterrupt), opened:
        pass
    assert asked == [(4, 2, 256, "egl", (1, 0)), (1, 0)]
