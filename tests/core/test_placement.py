"""Ranges of devices as people and RLinf write them, and what two roles may be to each other."""

import pytest

from pirl_jax.core import placement


@pytest.mark.parametrize(
    "text, devices",
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("0,2", (0, 2)),
        (" 4-5, 1 ", (4, 5, 1)),
        ("7-7", (7,)),
        ("all", None),
        (" all", None),
    ],
)
def test_ranges(text, devices):
    assert placement.parse(text, "placement.actor") == devices


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has an empty range; write ranges such as 0-3 or 0,2, or all"),
        ("0,,2", "has an empty range"),
        ("0-", "has '0-', which is no range"),
        ("-1", "has '-1', which is no range"),
        ("1.5", "has '1.5', which is no range"),
        ("gpu0", "has 'gpu0', which is no range"),
        ("²", "which is no range"),
        ("cpu", "has 'cpu', which is no range"),
        ("9" * 40, "which is no range"),
        ("3-0", "has the reversed range 3-0; write 0-3"),
        ("0-2,2", "names device 2 twice; name every device once"),
        ("0-3:0-1", "here is one process per host; drop ':0-1' and write 0-3"),
    ],
)
def test_what_is_no_range_is_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError) as error:
        placement.parse(text, "placement.actor")
    assert str(error.value).startswith(f"placement.actor={text!r} ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_here_is_named_with_how_many_there_are():
    said = r"placement.rollout='4-7' names device 6, but this host has 6 devices, 0-5; name some"
    with pytest.raises(ValueError, match=said):
        placement.of_page("", "4-7", "all", 6)
    with pytest.raises(ValueError, match=r"placement.actor='8' names device 8, .* 8 devices, 0-7"):
        placement.of_page("", "all", "8", 8)


@pytest.mark.parametrize(
    "rollout, actor, mode",
    [
        ("all", "all", "shared"),
        ("0-7", "all", "shared"),
        ("2,1", "1-2", "shared"),
        ("4-7", "all", "hybrid"),
        ("all", "6-7", "hybrid"),
        ("0", "0-1", "hybrid"),
        ("2-5", "6-7", "separate"),
        ("0,2", "1,3", "separate"),
    ],
)
def test_who_is_where_makes_the_mode(rollout, actor, mode):
    for env in ("", "cpu", "all", "0-3"):
        assert placement.of_page(env, rollout, actor, 8).mode == mode
    placement.check("", rollout, actor)


def test_an_overlap_in_part_is_refused_before_any_device_is_counted():
    said = r"placement.rollout=2-5 and placement.actor=4-7 overlap in part \(devices 4-5\); make"
    for refuse in (placement.check, lambda *texts: placement.of_page(*texts, 8)):
        with pytest.raises(ValueError, match=said):
            refuse("", "2-5", "4-7")


def test_what_somebody_may_not_have_meant_is_said():
    assert not list(placement.of_page("", "all", "all", 8).remarks(8))
    assert not list(placement.of_page("0-3", "4-7", "all", 8).remarks(8))
    (idle,) = placement.of_page("0-1", "2-5", "2-5", 8).remarks(8)
    assert idle.startswith("devices 6-7 are in no role")
    (waits,) = placement.of_page("0-1", "2-5", "6-7", 8).remarks(8)
    assert "while one works, the other is idle" in waits
    assert not list(placement.of_page("0-1", "2-5", "6-7", 8).remarks(8, takes_turns=False))


def test_rlinfs_spelling():
    assert placement.from_components({"actor,env,rollout": "all"}) == dict.fromkeys(
        ("actor", "env", "rollout"), "all"
    )
    given = {"env": "0-3", "rollout": "4-7", "actor": "0-7"}
    assert placement.from_components(given) == given
    assert placement.from_components({"env, rollout": 0}) == {"env": "0", "rollout": "0"}


@pytest.mark.parametrize(
    "given, said",
    [
        ("0-3", "component_placement='0-3' must be a dictionary"),
        ({"critic": "0"}, "no role is called 'critic'; roles are env, rollout, actor"),
        ({"env,": "0"}, "no role is called ''"),
        ({"env": "0", "env,actor": "1"}, "role env has devices already; name it once"),
        ({"env": "0-3:0-7"}, "component_placement.env='0-3:0-7' gives ranks of processes"),
        (
            {"env": {"node_group": "a800", "placement": "0-3"}},
            "names a group of nodes, but here every host has the same devices in a role",
        ),
    ],
)
def test_what_is_not_carried_over_from_rlinf(given, said):
    with pytest.raises(ValueError) as error:
        placement.from_components(given)
    assert said in str(error.value) and "\n" not in str(error.value)
