"""What docs/libero.md states as numbers is what the code does, and every link leads somewhere."""

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


def test_every_link_of_the_pages_leads_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    dead = []
    for page in pages:
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        local = [target for target in targets if "://" not in target]
        dead += [f"{page.name}: {to}" for to in local if not (page.parent / to).exists()]
    assert not dead


def test_the_readme_tells_it_in_three_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (item,) = re.findall(r"^\* \*\*LIBERO.*?(?=^\* )", text, flags=re.MULTILINE | re.DOTALL)
    assert item.count("\n") == 3 and "(docs/libero.md)" in item
