"""README.md and the pages of docs/: short where they greet, every link and anchor leads somewhere,
every number of the README stands in the page that it points to.
"""

import pathlib
import re
import unicodedata

import pytest

from pirl_jax.core import types
from tests import test_density as density

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^( *)```.*?^\1```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(page):
    """Without what stands in blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """Of the headings, as GitHub and the site make them; both agree where no other sign stands."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE):
        plain = unicodedata.normalize("NFKC", heading).lower()
        found.add(re.sub(r"[^\w\s-]", "", plain).strip().replace(" ", "-"))
    return found


def test_the_readme_is_no_wall():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert len(text.encode()) <= 10_000


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_leads_somewhere(page):
    dead = []
    for target, anchor in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        place = (page.parent / target) if target else page
        if not place.exists():
            dead.append(target)
        elif anchor and anchor not in anchors(place):
            dead.append(f"{target}#{anchor}")
    assert not dead


def test_every_page_is_named_in_the_readme():
    """Nobody has to find a page by listing the folder."""
    named = set(re.findall(r"\(docs/(\w+\.md)", README.read_text(encoding="utf-8")))
    absent = {page.name for page in (ROOT / "docs").glob("*.md")} - named - {"api.md"}
    assert not absent


def test_no_page_is_a_wall():
    """Paragraphs that go on for ten lines are not read; generated pages are tables anyway."""
    walls = []
    for page in PAGES:
        for part in text_of(page).split("\n\n"):
            lines = part.splitlines()
            is_prose = lines and not any(re.match(r"\s*([|*>#-]|\d+\.)", line) for line in lines)
            if is_prose and len(lines) > 10:
                walls.append(f"{page.name}: {lines[0][:60]}")
    assert not walls


# What the README says in short, and how the page says it that it comes from.
SOURCES = {
    "results.md": {
        "| 51 % [41, 61] | 76 % [67, 83] | 86 % [78, 92] |": "| 51 % [41, 61] | 76 % [67, 83] |",
        "| 56 % [46, 65] | 78 % [69, 85] | 82 % [73, 88] |": "| 56 % [46, 65] | 78 % [69, 85] |",
        "| 24 % [14, 37] | 68 % [54, 79] | 78 % [65, 87] |": "| 24 % [14, 37] | 68 % [54, 79] |",
        "| 12 % [6, 24] | 8 % [3, 19] | 8 % [3, 19] |": "| 12 % [6, 24] | 8 % [3, 19] |",
    },
    "quickstart.md": {
        "12 min 41 s on two CPU cores": "whole command took 12 min 41 s",
        "| seed 0 | 77.3 % [70.0, 83.3]": "| seed 0 | 77.3 % [70.0, 83.3] | 94.7 % [89.8, 97.3] |",
        "| seed 1 | 58.0 % [50.0, 65.6]": "| seed 1 | 58.0 % [50.0, 65.6] | 75.3 % [67.9, 81.5] |",
        "| seed 2 | 70.0 % [62.2, 76.8]": "| seed 2 | 70.0 % [62.2, 76.8] | 90.7 % [84.9, 94.4] |",
        "**94.7 %** [89.8, 97.3]": "94.7 % [89.8, 97.3]",
        "**75.3 %** [67.9, 81.5]": "75.3 % [67.9, 81.5]",
        "**90.7 %** [84.9, 94.4]": "90.7 % [84.9, 94.4]",
        "18 demonstrations": "18 demonstrations",
    },
    "benchmarks.md": {
        "39 times (π0)": "| 39x |",
        "228 times (π0.5)": "| 228x |",
        "3.4 times less time": "3.3 (3.4x)",
        "27 times faster": "119 (27x)",
        "246 GB as published, 31 GB": "| 246 (goal 329) |",
    },
    "placement.md": {"18.5 GiB": "18.5 of 24 GiB", "10 MB a decision": "10 MB a decision"},
    "libero.md": {"1.9 GB each, 0.5 GB": "1118 / 1876 / 2613"},
}


@pytest.mark.parametrize("page", SOURCES)
def test_numbers_of_the_readme_stand_in_its_pages(page):
    readme = " ".join(README.read_text(encoding="utf-8").split())
    source = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
    for short, whole in SOURCES[page].items():
        assert short in readme and " ".join(whole.split()) in source, short


def test_the_readme_counts_the_code():
    """To the thousand, without comments and docstrings."""
    lines = sum(density.size(path.read_text(encoding="utf-8")).lines for path in density.FILES)
    (told,) = re.findall(r"([\d,]+) lines of code", README.read_text(encoding="utf-8"))
    assert abs(int(told.replace(",", "")) - lines) < 1000, lines


def test_the_readme_counts_the_promises():
    rows = re.findall(
        r"^\| (?!promise|-)", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE
    )
    (told,) = re.findall(r"(\d+) promises", README.read_text(encoding="utf-8"))
    assert int(told) == len(rows)


def test_the_readme_maps_every_package():
    packages = {path.parent.name for path in (ROOT / "pirl_jax").glob("*/__init__.py")} - {
        "recipes"
    }
    table = README.read_text(encoding="utf-8").partition("| package | what |")[2]
    named = set(re.findall(r"`(\w+)`", table.partition("\n\n")[0]))
    assert named == packages


def test_the_stops_of_the_readme_are_those_of_the_tour():
    readme = re.findall(r"^ ?\d+ ([\w/*]+\.py)", README.read_text(encoding="utf-8"), re.MULTILINE)
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    stops = re.findall(r"^ ?\d+ ([\w/|]+\.py)", tour, re.MULTILINE)
    assert len(readme) == 10
    for short, stop in zip(readme, stops, strict=True):
        if "*" in short:
            assert len(list((ROOT / "pirl_jax").glob(short))) > 1
        elif short != stop:
            # The README names the mathematics where the tour names who calls it.
            assert short in tour, short


def test_the_dimension_key_of_the_tour_is_that_of_the_types():
    pair = re.compile(r"(?:^|(?<=  ))([A-Za-z])  (\S.*?)(?=\s{2,}|$)", re.MULTILINE)
    key = dict(pair.findall(types.__doc__))
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    rows = tour.partition("| letter | axis |")[2].partition("\n\n")[0]
    told = re.findall(r"\| ([A-Za-z]) \| ([^|]+) (?=\|)", rows)
    assert len(told) > 25
    assert [letter for letter, axis in told if not key[letter].startswith(axis)] == []
    assert {letter for letter in key if letter.isupper()} <= {letter for letter, _ in told}
