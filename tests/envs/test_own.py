"""Environments of somebody's own: MODULE:CLASS is found, or refused in one sentence."""

import pickle
import sys

import pytest

from pirl_jax.core import choices
from pirl_jax.envs import own
from pirl_jax.recipes import probe
from pirl_jax.run import config, simulators

SOURCE = """
class Fine:
    def __init__(self, image_size_px):
        self.size = image_size_px
    def reset(self, task, init_state): pass
    def step_chunk(self, actions_Ia, record=False): pass
    def close(self): pass

class Half:
    def reset(self, task, init_state): pass

thing = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "envs_of_mine.py").write_text(SOURCE)
    (tmp_path / "broken_of_mine.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("envs_of_mine", None)


def test_the_class_is_made_with_the_size_of_the_configuration():
    fields = probe.get_config()
    fields.env.update(suite="envs_of_mine:Fine", image_size_px=24)
    make_env = simulators.env_factory(config.settings(fields))
    assert pickle.loads(pickle.dumps(make_env))().size == 24


@pytest.mark.parametrize(
    "suite, said",
    [
        ("not_there:Fine", "no module not_there is found; start in its folder"),
        ("envs_of_mine.inner:Fine", "no module envs_of_mine.inner is found"),
        ("envs_of_mine:Fin", "envs_of_mine.py has no class Fin"),
        ("envs_of_mine:thing", "envs_of_mine.py has no class thing"),
        ("envs_of_mine:Half", "lacks step_chunk and close; see pirl_jax/envs/base.py"),
        (choices.OWN, "no module MODULE is found"),
    ],
)
def test_what_is_none_is_one_sentence(suite, said):
    with pytest.raises(ValueError, match=r"env\.suite=") as error:
        own.factory(suite, 16)
    assert said in str(error.value)


def test_a_folder_with_a_colon_in_its_name_is_none():
    assert own.is_class("module:Class") and not own.is_class("/data/tasks:2")


def test_a_mistake_in_the_module_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        own.factory("broken_of_mine:Fine", 16)


def test_names_of_suites_are_still_checked():
    for suite in ("libero", "os:", ":system", "a:b,c:d", "a b:c", "a:b:c"):
        fields = probe.get_config()
        fields.env.suite = suite
        with pytest.raises(ValueError, match=r"env\.suite="):
            config.settings(fields)
