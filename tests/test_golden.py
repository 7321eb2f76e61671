"""The committed part of the reference numbers: small, no pickles, what the full set says."""

import pathlib
import re

import numpy as np
import pytest
import reference_files

from tests.golden import cut

GOLDEN = pathlib.Path(__file__).parent / "golden"
NPZ = sorted((*cut.CASES, *cut.NAMES))
# Files of which the others of their kind stand here.
OF_A_KIND = ("model_", "train_")
# Kinds of arrays that are left out: images and hidden states that take much room, and what
# stands in another file here.
LEFT_OUT = re.compile(
    r"in/images_uN/.*"
    r"|.*/model_in/image/(base_N|left_wrist_N)_rgb"
    r"|out_bfNparams/(prefill|prefix|train)/.*|out_bfNparams/suffix/adarms_cond"
    r"|(params|ema)N/time_mlp_.*"
    r"|.*noise_head\.(logvar|mlp_logvar).*"
)


def test_it_stays_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 10e6


@pytest.mark.parametrize("name", NPZ)
def test_no_array_needs_pickle(name):
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        assert file.files and all(file[key].dtype != object for key in file.files)


@reference_files.only_complete
@pytest.mark.parametrize("name", NPZ)
def test_it_is_what_the_rule_cuts_out_of_the_full_set(vectors, name):
    want = cut.arrays(vectors, name)
    with np.load(GOLDEN / name) as file:
        assert set(file.files) == set(want)
        for key, x in want.items():
            np.testing.assert_array_equal(file[key], x, err_msg=key)


@reference_files.only_complete
def test_every_kind_of_array_is_here(vectors):
    """A kind: the name without its numbers and, where all cases are alike, without the case."""
    for folder in ("openpi", "rlinf", "rlinf2"):
        for path in (vectors / folder).glob("*.npz"):
            lacking = _kinds(path) - _kinds(*_alike(folder, path.name))
            lacking = [kind for kind in sorted(lacking) if not LEFT_OUT.fullmatch(kind)]
            assert not lacking, f"{path.name}: {lacking[:5]}"


def _alike(folder, name):
    """The files here that hold what this one holds."""
    family = next((start for start in OF_A_KIND if name.startswith(start)), name)
    return sorted((GOLDEN / folder).glob(f"{family}*"))


def _kinds(*paths):
    names = set()
    for path in paths:
        with np.load(path) as file:
            names |= {_kind(path, key) for key in file.files}
    return names


def _kind(path, key):
    rest = key.partition("/")[2]
    if path.name in ("d_sampler.npz", "h_e2e.npz", "g_optim.npz") or "rlinf2" in path.parts:
        key = rest.split("/", 1)[-1] if "rlinf2" in path.parts else rest
    key = re.sub(r"(params|grads|ema|proc|w_after|w0|in)\d*[/.](PaliGemma|w2?\.).*", r"\1", key)
    return re.sub(r"\d+", "N", key)
