"""Numbers out of XLA's text: of two texts that were compiled for this test, and of a few lines.

tests/run/hlo: six layers of tanh(x W), W [512,512] in bfloat16 split over 4 of 8 devices, 256 rows
over all of them; W minus its gradient.  Compiled for eight v5e chips and eight H100; what the
reader does not look at is cut away.
"""

import pathlib
import re

import pytest

from pirl_jax.run import hlo, hlo_loops, hlo_text

FOLDER = pathlib.Path(__file__).parent / "hlo"
TEXTS = {name: (FOLDER / f"layers_{name}.txt").read_text() for name in ("tpu", "cuda")}
LOOP = (FOLDER / "loop.txt").read_text()  # by hand
LAYERS = 6
WEIGHT = 512 * 512 * 2  # bytes


def _loop(first="1", step="2", direction="LT"):
    text = LOOP.replace("FIRST", first).replace("STEP", step).replace("DIRECTION", direction)
    return hlo.Program(text)


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_products_are_counted_as_often_as_their_loops_run(name):
    """Forward, and two products of the backward pass, of 32 rows a device."""
    assert hlo.Program(TEXTS[name]).totals().flops == LAYERS * 3 * 2 * 32 * 512 * 512


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_what_devices_exchange_is_counted_once_and_by_kind(name):
    """On the GPU it starts in one line and is done in another."""
    totals = hlo.Program(TEXTS[name]).totals()
    assert totals.collectives == {"all-gather": LAYERS * WEIGHT, "all-reduce": LAYERS * WEIGHT}
    assert totals.calls == {"all-gather": LAYERS, "all-reduce": LAYERS}


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_trip_counts_are_found_where_nobody_wrote_them_down(name):
    text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", TEXTS[name])
    assert ("known_trip_count" in TEXTS[name]) == (name == "cuda")
    program = hlo.Program(text)
    found = []
    for computation, one in program.instructions():
        if one.opcode == "while":
            found.append(hlo_loops.trips(program.computations, computation, one))
    assert found == [LAYERS, LAYERS]


def test_cycles_are_the_tpu_s_and_run_with_the_loops():
    whole = hlo.Program(TEXTS["tpu"])
    once = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', TEXTS["tpu"])))
    assert once < whole.totals().cycles < LAYERS * once
    assert hlo.Program(TEXTS["cuda"]).totals().cycles == 0


@pytest.mark.parametrize(
    "first, step, direction, trips",
    [("0", "1", "LT", 11), ("1", "2", "LT", 5), ("0", "1", "LE", 12), ("12", "1", "LT", 0)],
)
def test_a_loop_by_hand(first, step, direction, trips):
    """Its bound is handed in; of a fusion its own cycles count, of a copy that runs beside none, of
    two branches the slower one."""
    totals = _loop(first, step, direction).totals()
    assert totals.flops == trips * 2 * 8 * 16 * 4
    assert totals.cycles == trips * 100 + 30
    assert totals.collectives == ({"all-reduce": trips * 8 * 4 * 4})
    assert totals.unknown_loops == 0


def test_what_is_spread_over_fusions_is_one_and_a_sum_that_is_split_is_a_scatter():
    totals = hlo.Program((FOLDER / "spread.txt").read_text()).totals()
    assert totals.collectives == {"all-gather": 32 * 64 * 2, "reduce-scatter": 16 * 2 * 4}
    assert totals.calls == {"all-gather": 1, "reduce-scatter": 1}
    assert totals.flops == 2 * 8 * 16 * 8


def test_a_loop_that_nobody_can_count_is_counted_once_and_said():
    totals = _loop(direction="EQ").totals()
    assert totals.unknown_loops == 1 and totals.flops == 2 * 8 * 16 * 4


@pytest.mark.parametrize(
    "lhs, kernel, window",
    [
        (7, 3, {"stride": "2", "pad": "1_1"}),
        (4, 2, {"stride": "3", "lhs_dilate": "4"}),
        (9, 3, {"rhs_dilate": "2", "pad": "2_2"}),
        (1, 3, {"pad": "1_1"}),
    ],
)
def test_products_with_padding_are_no_products(lhs, kernel, window):
    stride = int(window.get("stride", 1))
    spread = int(window.get("lhs_dilate", 1))
    apart = int(window.get("rhs_dilate", 1))
    before, after = map(int, window.get("pad", "0_0").split("_"))
    padded = [None] * before
    for element in range(lhs):
        padded += [element] + [None] * (spread - 1)
    padded = padded[: len(padded) - (spread - 1)] + [None] * after
    out = (len(padded) - (kernel - 1) * apart - 1) // stride + 1
    met = [padded[o * stride + k * apart] for o in range(out) for k in range(kernel)]
    assert hlo._pairs(lhs, kernel, out, window) == sum(one is not None for one in met)


def test_sizes_know_every_type_and_no_layout():
    assert hlo_text.size("bf16[6,512,512]{2,1,0:T(8,128)(2,1)S(1)}") == 6 * WEIGHT
    assert hlo_text.size("(f32[2]{0}, /*index=1*/pred[3], s4[8], u32[])") == 8 + 3 + 4 + 4


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="has an ENTRY computation"):
        hlo.Program("HloModule nothing\n")
