"""A placement beside shared devices: names, and who is warned of what."""

import pytest

from pirl_jax.run import forecast, loop_model

SIMULATORS = loop_model.Simulators(8, 8, 8, chunk_s=(1.0,), reset_s=(0.5,), decisions=(4,))
SCHEDULE = loop_model.Schedule(16, 2, 32, 16, num_groups=2)
NAMES = {
    "shared": forecast.Layout(8, 8),
    "shared, offload": forecast.Layout(8, 8, offload=True),
    "hybrid 4 of 8": forecast.Layout(4, 8),
    "hybrid 2 of 8": forecast.Layout(8, 2),
    "separate 4 + 2, stale by 1": forecast.Layout(4, 2, separate=True, max_staleness=1),
    "separate 4 + 4": forecast.Layout(4, 4, separate=True),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_has_a_name(name):
    assert NAMES[name].name == name


def test_a_program_shares_its_rows_over_the_devices_of_its_role():
    work = forecast.Work(decision=8.0, microbatch=16.0, step_s=0.5)
    outcome = forecast.predict(forecast.Layout(4, 2, separate=True), work, SIMULATORS, SCHEDULE)
    # 64 rows: 2 minibatches of 2 microbatches, twice.
    assert outcome.update_s == pytest.approx(2 * 2 * (2 * 16 / 2 + 0.5))
    assert outcome.inference_s == pytest.approx(16 * 8 / 4)


def test_what_only_some_placements_do_costs_them_alone():
    free = forecast.Work(decision=1.0, microbatch=1.0)
    dear = forecast.Work(decision=1.0, microbatch=1.0, publish_s=3.0, offload_s=2.0)

    def more(layout: forecast.Layout) -> float:
        seconds = []
        for work in (dear, free):
            seconds.append(forecast.predict(layout, work, SIMULATORS, SCHEDULE).iteration_s)
        return seconds[0] - seconds[1]

    assert more(forecast.Layout(8, 8)) == 0
    assert more(forecast.Layout(4, 4, separate=True)) == pytest.approx(3.0)
    # Once away and once back; simulators reset meanwhile.
    assert more(forecast.Layout(8, 8, offload=True)) == pytest.approx(4.0, abs=0.6)


@pytest.mark.parametrize(
    "layout, said",
    [
        (forecast.Layout(6, 2, separate=True), "give placement.actor more devices"),
        (forecast.Layout(1, 7, separate=True), "give placement.rollout more devices"),
        (forecast.Layout(1, 8), "leave placement.rollout and placement.actor out"),
    ],
)
def test_a_bad_split_is_said_with_what_helps(layout, said):
    learning = layout.actor == 2
    work = forecast.Work(decision=1.0 if learning else 40.0, microbatch=40.0 if learning else 1.0)
    found = forecast.beside_shared(layout, work, SIMULATORS, SCHEDULE)
    (remark,) = found.remarks()
    assert f"a bad split: {layout.name} takes {found.ratio:.1f} times as long" in remark
    assert said in remark


def test_shared_devices_are_never_a_bad_split():
    work = forecast.Work(decision=1.0, microbatch=1.0)
    found = forecast.beside_shared(forecast.Layout(8, 8), work, SIMULATORS, SCHEDULE)
    assert found.ratio == 1.0 and not list(found.remarks())
    stale = forecast.Layout(8, 8, max_staleness=1)
    assert forecast.beside_shared(stale, work, SIMULATORS, SCHEDULE).ratio < 1.0
