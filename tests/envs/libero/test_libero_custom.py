"""A folder of tasks that somebody made: its files, and the sentences where they are wrong."""

import pathlib
import re
import shutil

import numpy as np
import pytest

from pirl_jax.core import page
from pirl_jax.envs import expert_tasks
from pirl_jax.envs.libero import custom, files, perturbed, suite
from pirl_jax.run import config, perturbations

STOCK = "libero_object"


@pytest.fixture
def folder(tmp_path):
    """Two tasks: one of LIBERO's as it is, and one with other words, states and a later name."""
    (tmp_path / "my tasks").mkdir()
    return fill(tmp_path / "my tasks")


def fill(place):
    bddl = files.bddl_file(STOCK, 0)
    shutil.copy(bddl, place / "b.bddl")
    shutil.copy(files.init_file(STOCK, 0), place / "b.pruned_init")
    own = re.sub(r"\(:language[^()]*\)", "(:language Fetch the Soup)", bddl.read_text())
    (place / "a_10.bddl").write_text(own)
    np.save(place / "a_10.npy", files.init_states(STOCK, 0)[:7])
    return place


def forget():
    """What a process keeps of a folder, whose files do not change while it lives."""
    for cached in (custom.names, custom.counts, files.tasks, files.init_states):
        cached.cache_clear()


def test_tasks_in_sorted_order_with_their_own_files(folder):
    name = str(folder)
    tasks = files.tasks(name)
    assert [(task.suite, task.name, task.number) for task in tasks] == [
        (name, "a_10", 0),
        (name, "b", 1),
    ]
    assert files.bddl_file(name, 0) == folder / "a_10.bddl"
    assert files.init_file(name, 0) == folder / "a_10.npy"
    assert files.init_file(name, 1) == folder / "b.pruned_init"
    np.testing.assert_array_equal(files.init_states(name, 1), files.init_states(STOCK, 0))
    np.testing.assert_array_equal(files.init_states(name, 0), files.init_states(STOCK, 0)[:7])


def test_the_order_is_not_that_of_the_disk(folder, monkeypatch):
    listed = sorted(folder.iterdir(), reverse=True)
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda place: iter(listed))
    assert custom.names(str(folder)) == ("a_10", "b")


def test_an_env_of_the_folder(folder, libero_assets):
    env = suite.make(str(folder), assets=libero_assets, image_size_px=64)
    assert env.spec.num_init_states == 7, "as many as every task has"
    assert env.spec.instructions[0] == "fetch the soup", "the file's own words"
    assert env.spec.max_episode_steps == files.PROTOCOLS["rlinf"].limit("libero_10")
    assert suite.make(str(folder), libero_assets, max_episode_steps=33).spec.max_episode_steps == 33
    words = suite.make(str(folder), libero_assets, wording="benchmark").spec.instructions
    assert words == ("a 10", "b")
    env.close()


def test_what_is_not_played_is_said(folder):
    said = custom.shortened(str(folder))
    assert "have 7 to 50 start states; the first 7 of each are played, as many as a_10" in said
    (folder / "b.pruned_init").unlink()
    np.save(folder / "b.npy", files.init_states(STOCK, 0)[:7])
    forget()
    assert custom.shortened(str(folder)) == ""


def test_an_episode_does_not_depend_on_other_tasks_of_the_folder(folder):
    from pirl_jax.envs.libero import simulator

    def numbers():
        forget()
        setups = [
            simulator.Setup(str(folder), task, folder, settle_steps=1, seed=0)
            for task in range(len(files.tasks(str(folder))))
        ]
        return {setup.bddl_file().stem: setup.number() for setup in setups}

    before = numbers()
    shutil.copy(folder / "b.bddl", folder / "a.bddl")
    after = numbers()
    assert len(after) == 3 and after.items() > before.items()


def test_results_name_the_files_by_their_hash(folder, tmp_path):
    def identity(place):
        forget()
        env = page.from_dict(page.Page().as_dict() | {}).env
        env = page.Env(**{**vars(env), "suite": str(place)})
        return perturbations.data(env)[str(place)]

    first = identity(folder)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert identity(elsewhere) == first, "wherever it lies"
    text = (elsewhere / "b.bddl").read_text()
    (elsewhere / "b.bddl").write_text(text + "; changed\n")
    assert identity(elsewhere)["sha256"] != first["sha256"]


def test_a_run_of_such_a_folder(folder, monkeypatch):
    """The page takes its path, and a protocol's rules hold."""
    monkeypatch.chdir(folder.parent)
    fields = page.Page().as_dict()
    fields["env"]["suite"] = "./my tasks/"
    fields["model"].update(norm_stats="identity")
    settings = config.settings(fields)
    assert settings.raw.env.suite == str(folder)
    assert config.rules(settings.raw) is files.PROTOCOLS["rlinf"]
    assert files.members(settings.raw.env.suite) == (str(folder),)
    assert files.title(settings.raw.env.suite) == "my tasks" and files.title(STOCK) == STOCK
    assert expert_tasks.having(str(folder)) == ()
    perturbed.check(str(folder), "benchmark")


@pytest.mark.parametrize("value", ["my_tasks", "", "libero_10,my_tasks"])
def test_a_name_is_not_taken_for_a_folder(value, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "my_tasks").symlink_to(folder)
    with pytest.raises(ValueError, match=r"env\.suite=.* choose one of: .*a path with a slash"):
        page.Env(suite=value)


def _without_states(folder):
    (folder / "b.pruned_init").unlink()


def _with_two(folder):
    np.save(folder / "b.npy", np.zeros((3, 92)))


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _pickle(folder):
    np.save(folder / "a_10.npy", np.array([print, "x"], object), allow_pickle=True)


def _huge(folder):
    """A header that claims terabytes."""
    with (folder / "a_10.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**5)}
        np.lib.format.write_array_header_1_0(file, header)


def _not_finite(folder):
    np.save(folder / "a_10.npy", np.full((3, 92), np.nan))


def _whole_numbers(folder):
    np.save(folder / "a_10.npy", np.zeros((3, 92), int))


def _none(folder):
    np.save(folder / "a_10.npy", np.zeros((0, 92)))


def _of_torch(folder):
    (folder / "b.pruned_init").write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n")


def _no_words(folder):
    text = (folder / "b.bddl").read_text()
    (folder / "b.bddl").write_text(text.replace(":language", ":lang"))


@pytest.mark.parametrize(
    "change, said",
    [
        (shutil.rmtree, "is no folder; name one that holds NAME.bddl and NAME.pruned_init"),
        (_empty, "holds 0 files NAME.bddl; put 1 to 1000 tasks into it"),
        (_without_states, "has no start states for b.bddl; put b with one of .pruned_init, .init,"),
        (_with_two, "has both b.pruned_init and b.npy; keep the one"),
        (_pickle, "a_10.npy holds no init states (an array has a dtype that is not accepted"),
        (_huge, "a_10.npy holds no init states (an array of shape [1000000000, 100000] and 8"),
        (_not_finite, "a_10.npy holds no init states (an array of shape [3, 92] has values that"),
        (_whole_numbers, "a_10.npy holds no init states (it has int64 of shape [3, 92]"),
        (_none, "a_10.npy holds no init states (it has float64 of shape [0, 92] instead of states"),
        (_of_torch, "b.pruned_init holds no init states (File is not a zip file); write them"),
        (_no_words, "b.bddl has no instruction that can be read; write one line (:language ...)"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_remedy(change, said, folder, libero_assets):
    change(folder)
    forget()
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        suite.make(str(folder), assets=libero_assets)
    assert str(folder) in str(error.value) and "; " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_holds_no_folder(folder):
    with pytest.raises(ValueError, match="a folder of tasks stands alone, in no list of suites"):
        custom.names(f"libero_10,{folder}")


def test_one_state_is_enough(folder):
    np.save(folder / "a_10.npy", files.init_states(STOCK, 0)[0])
    assert files.init_states(str(folder), 0).shape == (1, files.init_states(STOCK, 0).shape[1])
    assert files.num_init_states(str(folder)) == 1
