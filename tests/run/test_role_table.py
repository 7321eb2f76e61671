"""What the doctor says of a recipe: who is where, and what each device holds."""

import os

import pytest

from pirl_jax import doctor
from pirl_jax.core import placement
from pirl_jax.envs.gl import backends
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import config, gpus, plan, role_table, shares, simulators

GIB = shares.GIB
# EGL lists them from the last to the first.
OF_GPUS = {cuda: 7 - cuda for cuda in range(8)}
PLANNED = plan.Plan(
    resident={"frozen weights": 8 * GIB, "optimiser": 3 * GIB, shares.PUBLISHED: 9 * GIB},
    work={shares.ROLLOUT: 5 * GIB, "optimiser step": 2 * GIB},
    host=0,
    limit=80 * GIB,
    host_limit=GIB,
    microbatch_size=1,
    prefix_cache="host",
    gradient_checkpointing="dots",
)


def rows_of(env, rollout, actor, workers=8, planned=PLANNED):
    placed = placement.of_page(env, rollout, actor, 8)
    ordinals = placement.parse(env, "") or ()
    drawing = role_table.Drawing(workers, [OF_GPUS[each] for each in ordinals])
    planned = plan.dataclasses.replace(planned, placed=placed)
    return role_table.table(8, placed, planned, drawing, OF_GPUS)


def test_every_device_has_a_row_with_its_roles_and_sizes():
    """RLinf's layout of separate devices, with two that do both in another."""
    rows = rows_of("0-1", "2-5", "6-7", workers=3)
    assert rows[0] == ["0", "env", "-", "-", "-", "2, 1.0", "0", "7"]
    assert rows[1] == ["1", "env", "-", "-", "-", "1, 0.5", "1", "6"]
    assert rows[2] == ["2", "rollout", "9.00", "14.00", "80.00", "-", "2", "5"]
    assert rows[7] == ["7", "actor", "11.00", "13.00", "80.00", "-", "7", "0"]
    hybrid = rows_of("0-3", "4-7", "all")
    assert [row[1] for row in hybrid] == ["env, actor"] * 4 + ["rollout, actor"] * 4
    assert hybrid[4][2:4] == ["20.00", "25.00"] and hybrid[0][2:4] == ["11.00", "13.00"]
    assert [row[1] for row in rows_of("0-1", "all", "all")[:3]] == [
        "env, rollout, actor",
        "env, rollout, actor",
        "rollout, actor",
    ]


def test_what_nobody_has_asked_a_compiler_is_not_said():
    uncompiled = plan.dataclasses.replace(PLANNED, work={})
    rows = rows_of("0-1", "2-5", "6", planned=uncompiled)
    assert rows[2][2:4] == ["9.00", "-"]
    assert rows[7] == ["7", "-", "-", "-", "-", "-", "7", "0"], "in no role"


@pytest.mark.parametrize(
    "drawing, sentence",
    [
        (role_table.Drawing(4, (), None), "draw nothing in this suite"),
        (role_table.Drawing(4, (), "osmesa"), "draw with osmesa, on the CPU"),
        (role_table.Drawing(4, ()), "draw on EGL's default device"),
        (role_table.Drawing(4, (0, 9)), "draw on EGL devices 9, no GPU of JAX here"),
    ],
)
def test_who_draws_elsewhere_is_a_sentence(drawing, sentence):
    (said,) = drawing.remarks(OF_GPUS)
    assert sentence in said and drawing.on(OF_GPUS[3]) == 0
    assert not list(role_table.Drawing(4, (0, 1)).remarks(OF_GPUS))


# ---- of this host -----------------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch):
    """A function: of the probe recipe, whose roles lie so."""
    monkeypatch.setenv(gpus.PREALLOCATE, "false")

    def of(**changes):
        fixed = {
            "algorithm.microbatch_size": 8,
            "rollout.num_envs": 16,
            "env.num_workers": 4,
            "run.compilation_cache": "",
        }
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return config.changed(config.settings(recipe.get_config()), fixed | changes)

    return of


def column(text, name):
    """Cells of the table in a report, by device."""
    lines = text.splitlines()
    at = [cell.strip() for cell in lines[0].split("  ") if cell].index(name)
    rows = [line for line in lines[2:] if line[:1].isdigit()]
    return [[cell for cell in row.split("  ") if cell][at].strip() for row in rows]


def test_a_separate_placement_on_this_host(settings, monkeypatch):
    """Nothing is compiled, what stays is what the plan says, and where it is compiled the peak."""
    monkeypatch.setattr(plan, "compiled", lambda *_: pytest.fail("nothing is compiled"))
    apart = settings(placement__rollout="2-5", placement__actor="6-7")
    report = role_table.report(apart, is_full=False)
    assert report["found"] == "separate: rollout on 2-5, actor on 6-7"
    text = report["text"]
    assert column(text, "roles") == ["-"] * 2 + ["rollout"] * 4 + ["actor"] * 2
    assert column(text, "at most") == ["-"] * 8 and role_table.NOT_COMPILED in text
    assert "devices 0-1 are in no role" in text and "draw nothing" in text
    assert f"{gpus.FRACTION} is for GPUs, and JAX has none here" in text
    stays = column(text, "stays")
    assert stays[:2] == ["-", "-"] and all(float(size) >= 0 for size in stays[2:])
    # With as much work on everybody as this, what is most is known and said.
    work = {shares.ROLLOUT: 2 * GIB, "optimiser step": 5 * GIB}
    monkeypatch.setattr(plan._Work, "needed", lambda self: work)
    text = role_table.report(apart, is_full=True)["text"]
    assert column(text, "at most")[1:] == ["-", *["2.00"] * 4, *["5.00"] * 2]
    assert role_table.NOT_COMPILED not in text


def test_the_share_of_a_gpu_that_will_be_set_is_said(settings, monkeypatch):
    """And whose drawing processes it leaves room for."""
    for name in gpus.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "memory_mib", lambda: [81559] * 8)
    monkeypatch.setattr(role_table, "_memory_of_gpus", gpus.memory_mib)
    listed = [backends.Device(egl, cuda) for cuda, egl in OF_GPUS.items()]
    monkeypatch.setattr(backends, "devices", lambda: listed)
    monkeypatch.setattr(simulators, "drawing", lambda settings: ("egl", (7, 6)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    drawn = settings(placement__env="0-1")
    try:
        text = role_table.report(drawn, is_full=False)["text"]
    finally:
        os.environ.pop(gpus.FRACTION, None)
    assert column(text, "simulators")[:3] == ["2, 1.0", "2, 1.0", "-"]
    assert column(text, "EGL") == [str(egl) for egl in OF_GPUS.values()]
    assert f"{gpus.FRACTION}=0.95, what simulators leave of the GPUs" in text
    monkeypatch.setenv(gpus.FRACTION, "0.5")
    text = role_table.report(drawn, is_full=False)["text"]
    assert f"JAX's share of a GPU's memory: {gpus.FRACTION}=0.5" in text


def test_what_cannot_run_here_is_a_failed_check(settings, monkeypatch):
    with pytest.raises(ValueError, match="names device 8, but this host has 8 devices"):
        role_table.report(settings(placement__actor="8"), is_full=False)
    monkeypatch.setattr(plan, "device_limit", lambda device: 1)
    with pytest.raises(ValueError, match=r"need .* GiB of a device .*; train --plan-only names"):
        role_table.report(settings(), is_full=False)


# ---- as the doctor shows it ----------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """No other check; what they would have been given."""
    given = []
    row = doctor.machine.Row("one", "pass", "fine")
    monkeypatch.setattr(doctor, "examine", lambda options: given.append(options) or [row])
    return given


def ask_doctor(*arguments):
    with pytest.raises(SystemExit) as ending:
        doctor.main(["doctor", *arguments])
    return ending.value.code


def test_the_doctor_asks_a_process_of_its_own(quick, monkeypatch, capsys):
    asked = []

    def ask(arguments, timeout_s):
        asked.append(arguments)
        return {"found": "separate: rollout on 2-5, actor on 6-7", "text": "the table"}

    monkeypatch.setattr(doctor.child, "ask", ask)
    override = ("--config.placement.actor", "6-7")
    assert ask_doctor("--config", "probe", "--full", *override) == 0
    ((*_, own, actor, full),) = asked
    assert (own, actor, full) == ("--config=probe", "--config.placement.actor=6-7", "--full")
    said = capsys.readouterr().out
    assert "roles  pass  separate: rollout on 2-5, actor on 6-7\n" in said
    assert said.endswith("\n\nthe table\n")
    assert ask_doctor() == 0 and len(asked) == 1, "without a recipe nobody asks"


def test_sizes_are_those_of_the_recipe(quick, monkeypatch):
    monkeypatch.setattr(doctor, "check_roles", lambda options: (quick_row(), ""))
    ask_doctor("--config=probe", "--config.env.num_workers=3", "--num-envs", "5")
    ask_doctor()
    of_recipe, without = quick
    assert (of_recipe.num_envs, of_recipe.num_workers) == (5, 3)
    assert of_recipe.image_size_px == recipe.get_config().env.image_size_px
    assert (without.num_envs, without.num_workers, without.image_size_px) == (64, 8, 256)


def quick_row():
    return doctor.machine.Row("roles", "pass", "")


@pytest.mark.slow
def test_the_whole_question_on_eight_devices(quick, capsys):
    """In its process, as on a user's machine: a table, or a sentence and exit code 1."""
    places = ("--config.placement.rollout=2-5", "--config.placement.actor=6-7")
    assert ask_doctor("--config=probe", *places) == 0
    said = capsys.readouterr().out
    assert column(said.partition("\n\n")[2].partition("\n\n")[2], "roles")[2:] == [
        *["rollout"] * 4,
        *["actor"] * 2,
    ]
    assert ask_doctor("--config=probe", "--config.placement.actor=5-8") == 1
    said = capsys.readouterr().out
    assert "roles  fail  placement.actor='5-8' names device 8" in said
    assert "-> name some of these, or all" in said
