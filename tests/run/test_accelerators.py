"""Targets by their names, the table behind them, and what JAX is asked for."""

import pathlib

import pytest

from pirl_jax.run import accelerators, topology

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, count, limit_gib",
    [
        ("tpu:v5e:2x4", 8, 15.75),
        ("tpu:v5e:1", 1, 15.75),
        ("tpu:v5p:2x2x1", 4, 95.74),
        ("tpu:v5p:4x4x4", 64, 95.74),
        ("tpu:v6e:2x4", 8, 31.25),
        ("cuda:h100:8", 8, 0.75 * 79.11),
        ("cuda:a100-80g:1", 1, 0.75 * 79.26),
        ("cuda:rtx4090:1", 1, 0.75 * 23.99),
    ],
)
def test_a_target_is_a_chip_and_a_count(text, count, limit_gib, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    target = accelerators.parse(text)
    assert target.count == count
    assert target.chip.limit / accelerators.GIB == pytest.approx(limit_gib, rel=1e-3)


@pytest.mark.parametrize(
    "text", ["", "tpu", "tpu:v9:2x4", "cuda:v5e:8", "rocm:mi300:8", "cuda:h100", "tpu:v5e:2*4"]
)
def test_an_unknown_target_is_a_sentence_with_those_that_there_are(text):
    with pytest.raises(
        ValueError, match=r"does not exist; choose one of: tpu:v5e:2x4, .*cuda:h100:8"
    ):
        accelerators.parse(text)


@pytest.mark.parametrize(
    "text, remedy",
    [
        ("tpu:v5e:8", "tpu:v5e:1 for one chip, or a slice such as tpu:v5e:2x4"),
        ("tpu:v5p:2x4", "a slice such as tpu:v5p:2x2x1"),
        ("cuda:h100:16", "cuda:h100:N with 1 to 8 devices"),
        ("cuda:h100:2x4", "cuda:h100:N"),
        ("cuda:h100:0", "cuda:h100:N"),
    ],
)
def test_a_shape_that_no_such_chip_comes_in_is_a_sentence(text, remedy):
    with pytest.raises(ValueError, match=f"--target={text} must be .*{remedy}"):
        accelerators.parse(text)


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("tpu:v5e:1", 1),
        ("tpu:v5e:2x4", 1),
        ("tpu:v5e:4x4", 4),
        ("tpu:v5p:2x2x1", 1),
        ("tpu:v5p:4x4x4", 16),
        ("cuda:h100:8", 1),
    ],
)
def test_larger_slices_stand_in_several_hosts_and_say_so(text, hosts):
    target = accelerators.parse(text)
    assert target.hosts == hosts
    assert (f"one of {hosts} hosts" in " ".join(target.notes)) == (hosts > 1)


def test_a_gpu_gives_a_run_what_jax_takes_of_it(monkeypatch):
    chip = accelerators.parse("cuda:h100:8").chip
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert chip.limit == chip.memory // 2
    tpu = accelerators.parse("tpu:v5e:1").chip
    assert tpu.limit == tpu.memory


def test_a_description_that_we_composed_says_so():
    composed = accelerators.parse("cuda:rtx4090:1")
    assert any("composed by us" in note for note in composed.notes)
    assert not any("composed" in note for note in accelerators.parse("cuda:h100:1").notes)


def test_what_xla_is_told_of_a_gpu_is_the_table():
    chip = accelerators.parse("cuda:h100:8").chip
    text = chip.gpu.text(chip)
    for part in (
        "core_count: 132",
        "memory_bandwidth: 3352320000000",
        "device_memory_size: 84942979072",
        "shared_memory_per_block_optin: 232448",
        "clock_rate_ghz: 1.98",
        "major: 9 minor: 0",
        'device_description_str: "NVIDIA H100 80GB HBM3"',
    ):
        assert part in text


def test_the_page_shows_the_table_as_it_is(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert accelerators.as_markdown() in page
    sources = page.partition("## Sources")[2]
    for chips in accelerators.TABLE.values():
        for name in chips:
            assert f"`{name}`" in sources, f"{name} has no source"


def test_a_compiler_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setattr(topology, "WHEELS", {"tpu": ("no_such",), "cuda": ("none_such",)})
    for text in ("tpu:v5e:1", "cuda:h100:8"):
        with pytest.raises(ValueError, match=r'not installed: pip install "pirl_jax\[targets\]"'):
            topology.devices(accelerators.parse(text))


def test_the_pins_and_the_extra_name_the_same_wheels():
    pins = (ROOT / "requirements-targets.txt").read_text(encoding="utf-8")
    extra = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ntargets = [")[2]
    for name in ("libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt"):
        assert f"\n{name}==" in pins and f'"{name}' in extra.partition("]\n")[0]
    jax_pin = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("\njax==")[2]
    version = jax_pin.partition("\n")[0]
    assert f"jax-cuda12-plugin=={version}" in pins and f"jax-cuda12-pjrt=={version}" in pins
    tpu = (ROOT / "requirements-tpu.txt").read_text(encoding="utf-8")
    assert tpu.partition("\nlibtpu==")[2].partition("\n")[0] in pins
