"""docs/libero_pro.md says what the files of LIBERO-PRO say."""

import pathlib

import pytest

from pirl_jax.envs.libero import files
from pirl_jax.run import changes

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "libero_pro.md"


def both(suite, task, folder):
    base = files.PRO_SUITES[suite]
    before = changes.parts(files.bddl_file(base, task))
    return before, changes.parts(files.bddl_file(suite, task, files.Folders(pro=folder)))


def test_the_document_is_made_from_the_files(libero_pro):
    remedy = "python -m pirl_jax.run.changes > docs/libero_pro.md"
    assert DOCUMENT.read_text() == changes.as_markdown(files.Folders(pro=libero_pro)), remedy


def test_each_dimension_changes_what_its_name_says_and_nothing_else(libero_pro):
    allowed = {
        "lan": {":language"},
        "object": {":objects", ":fixtures"},
        "swap": {":init"},
        "task": {":language", ":goal", ":obj_of_interest"},
    }
    for suite in files.PRO_SUITES:
        for task in range(10):
            found = changes._differing(*both(suite, task, libero_pro))
            assert found and set(found) <= allowed[suite.rpartition("_")[2]], (suite, task)


def test_things_exchange_their_places(libero_pro):
    """Two of them, or two pairs."""
    pairs = set()
    for suite in (name for name in files.PRO_SUITES if name.endswith("_swap")):
        for task in range(10):
            before, after = both(suite, task, libero_pro)
            assert sorted(str(line[2:]) for line in before[":init"]) == sorted(
                str(line[2:]) for line in after[":init"]
            ), (suite, task)
            pairs.add(len(list(changes._moved(before[":init"], after[":init"]))) / 2)
    assert pairs == {1, 2}


def test_the_oddities(libero_pro):
    """What the document lists, where the files say it."""
    two, six = (both("libero_goal_task", task, libero_pro)[1] for task in (2, 6))
    assert (two[":language"], two[":goal"]) == (six[":language"], six[":goal"])
    before, after = both("libero_goal_task", 7, libero_pro)
    assert " ".join(after[":language"]) == "turn off the stove"
    assert after[":goal"] == [["and", ["turnoff", "flat_stove_1"]]]
    assert after[":init"] == before[":init"] and "turnon" not in str(after[":init"])
    for task, old, new in (
        (5, "black_book", "black_bowl"),
        (9, "white_yellow_mug", "red_coffee_mug"),
    ):
        before, after = both("libero_10_object", task, libero_pro)
        assert changes._replaced(before, after) == {old: new}
        assert after[":language"] == before[":language"]
    assert "not between" in " ".join(both("libero_spatial_task", 0, libero_pro)[1][":language"])
    for task in range(10):
        before, after = both("libero_object_swap", task, libero_pro)
        moved = " ".join(changes._moved(before[":init"], after[":init"]))
        assert "basket" not in moved


@pytest.mark.parametrize("suite", ["libero_10_task", "libero_spatial_lan"])
def test_scenes_stay(libero_pro, suite):
    for task in range(10):
        before, after = both(suite, task, libero_pro)
        assert before["problem"] == after["problem"]


def test_lists_of_things_with_their_kinds():
    words = ["a_1", "a_2", "-", "a", "b_1", "-", "b"]
    assert changes._things(words) == [("a_1", "a"), ("a_2", "a"), ("b_1", "b")]
    assert changes._text(changes._read("(and (on a b) c)")[0]) == "(and (on a b) c)"
