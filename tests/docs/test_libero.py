"""What docs/libero.md states as numbers is what the code does."""

import pathlib
import re

from pirl_jax.envs.libero import files

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "libero.md").read_text(encoding="utf-8")


def test_limits_and_settle_steps_are_those_of_the_protocols():
    rows = re.findall(r"^\| `(\w+)` \| ([\d /]+) \| (\d+) \|$", PAGE, flags=re.MULTILINE)
    assert {name for name, *_ in rows} == files.PROTOCOLS.keys()
    for name, limits, settle_steps in rows:
        protocol = files.PROTOCOLS[name]
        assert [int(limit) for limit in limits.split("/")] == [
            protocol.limit(suite) for suite in files.OWN_FILES
        ]
        assert int(settle_steps) == protocol.settle_steps
