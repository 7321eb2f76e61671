"""`pirl report`: the command, and its page in a browser that is offline, wide, narrow and dark."""

import random

import numpy as np
import pytest

from pirl_jax import report
from pirl_jax.monitor import video
from pirl_jax.run import records, story
from tests import damaged_files, run_folders

HOSTILE = "</script><img src=x onerror=boom()> & <b>put</b> " + "the_very_long_word" * 6


def written(capsys, folder, *sources):
    report.main(["report", *map(str, sources), "--output", str(folder / "page.html")])
    assert f"page in {folder / 'page.html'}" in capsys.readouterr().out
    return folder / "page.html"


def test_a_folder_that_is_none_leaves_no_page(tmp_path, capsys):
    run = run_folders.run(tmp_path / "run")
    (tmp_path / "foreign").mkdir()
    for source, said in (
        (tmp_path / "foreign", "holds neither a run nor an evaluation"),
        (tmp_path / "nowhere", "holds neither a run nor an evaluation"),
    ):
        with pytest.raises(SystemExit) as exit_:
            report.main(["report", str(run), str(source), f"--output={tmp_path / 'page.html'}"])
        assert exit_.value.code == 2 and f"{source} {said}" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of one run with a video and hostile words, and of three sources."""
    folder = tmp_path_factory.mktemp("pages")
    first = run_folders.run(folder / "first")
    words = (HOSTILE, run_folders.TASKS[1])
    after = run_folders.evaluation(first / "evaluation" / "after", run_folders.outcomes(6), words)
    frames = [np.full((16, 16, 3), 40 * k, np.uint8) for k in range(3)]
    video.write_episode(after / "videos" / "task_0_init_3_success.mp4", frames, "words", True)
    film = first / "video" / "train" / "iteration_2_episode_0_task_0_init_1.mp4"
    video.write_episode(film, frames, "words", True)
    second = run_folders.run(folder / "second", after=8, finished=False)
    report.main(["report", str(first), "--output", str(folder / "one.html")])
    several = [first, second, after]
    report.main(["report", *map(str, several), "--output", str(folder / "several.html")])
    return folder


@pytest.fixture
def shown(chromium, pages):
    """Opens a page; at the end nothing has gone wrong in it and nothing was asked of anybody."""
    wrong = []
    contexts = []

    def open_(name, width=1000, scheme="light"):
        size = {"width": width, "height": 800}
        context = chromium.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        address = (pages / name).as_uri()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(address)
        assert wrong.pop(0) == address
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not [what for what in wrong if not what.startswith("data:")]


def overflows(page):
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_every_section_is_there(shown):
    page = shown("one.html")
    assert page.title() == "first – pirl report"
    assert "PPO on tabletop, complete: 4 iterations" in page.locator("#lead").inner_text()
    for name in ("learning", "change", "episodes", "failures", "time", "faults", "questions"):
        assert page.locator(f"#{name}").is_visible(), name
    assert page.locator("#success svg circle").count() == 1, "the evaluation"
    assert "gained, 0 lost, McNemar p = 0.031" in page.locator("#change-words").inner_text()
    assert "8 ran out of time at 50" in page.locator("#failures-words").inner_text()
    assert "simulators replaced" in page.locator("#faults").inner_text()
    assert "the recipe tabletop_small" in page.locator("#settings-words").inner_text()
    assert page.locator("#compared").is_hidden() and not page.locator("#sources button").count()


def test_texts_of_files_are_texts(shown):
    page = shown("one.html")
    assert HOSTILE in page.locator("#matrix h3").first.inner_text()
    assert not page.locator("main img").count() and not page.locator("main b").count()


def test_it_filters(shown):
    page = shown("one.html")
    cells = page.locator("#matrix .cell")
    assert cells.count() == 20 and page.locator("#count").inner_text() == "20 of 20 episodes"
    page.select_option("#outcome", "failure")
    assert cells.count() == 8 and page.locator("#matrix .success").count() == 0
    page.fill("#task", "BLUE push")
    assert cells.count() == 4
    page.select_option("#outcome", "changed")
    assert cells.count() == 3
    page.select_option("#outcome", "all")
    page.select_option("#which", label="before")
    assert page.locator("#matrix .success").count() == 3
    assert "before: 14 failures" in page.locator("#failures-words").inner_text()


def test_an_episode_opens_with_its_video(shown):
    page = shown("one.html")
    page.locator(".cell.video").click()
    assert "start state 3" in page.locator("#episode-title").inner_text()
    assert "success after 23 control steps of at most 50" in page.inner_text("#episode-words")
    assert page.inner_text("#episode-others td >> nth=1") == "failure"
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    assert page.evaluate("document.querySelector('video').videoWidth") == 384
    page.keyboard.press("Escape")
    page.wait_for_selector("video", state="detached")
    page.locator(".cell").last.click()
    assert "No video of this episode" in page.inner_text("#episode-film")


def test_a_film_of_training_opens(shown):
    page = shown("one.html")
    page.locator("#films button").click()
    assert page.inner_text("#episode-title") == "iteration 2 episode 0 task 0 init 1"
    page.wait_for_function("document.querySelector('video').readyState >= 2")


@pytest.mark.parametrize("name", ["one.html", "several.html"])
def test_nothing_overflows_on_a_phone(shown, name):
    page = shown(name, width=320)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert not overflows(page)
    page.locator(".cell").first.click()
    assert not overflows(page)
    assert page.evaluate("episode.scrollWidth <= episode.clientWidth"), "the opened one"
    # The rule can fail.
    page.evaluate("lead.style.maxWidth = lead.style.width = '900px'")
    assert overflows(page)


def test_light_and_dark(shown):
    brightness = {}
    for scheme in ("light", "dark"):
        page = shown("one.html", scheme=scheme)
        colour = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
        brightness[scheme] = int(page.evaluate(colour)[0])
    assert brightness["light"] > 200 and brightness["dark"] < 60


def test_several_stand_side_by_side(shown):
    page = shown("several.html")
    assert page.title() == "3 compared – pirl report"
    rows = page.locator("#sides tbody tr")
    assert rows.count() == 3 and "4 of 4 iterations, not complete" in rows.nth(1).inner_text()
    assert "on 20 equal start states" in page.locator("#pairs").inner_text()
    assert page.locator("#more").is_visible()
    page.locator("#more summary").click()
    page.wait_for_selector("#panels svg")
    assert page.locator("#panels svg").count() >= 2
    page.locator("#sources button").nth(1).click()
    assert page.locator("#change").is_hidden() and page.locator("#time").is_visible()
    page.locator("#sources button").nth(2).click()
    assert page.locator("#time").is_hidden() and page.locator(".cell").count() == 20
    assert "max_episode_steps" in page.locator("#settings-table").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluation", "run"])
def test_whatever_was_damaged_the_script_has_no_error(chromium, tmp_path, kind):
    """Of folders that are damaged and can be read all the same."""
    case = damaged_files.KINDS[kind]()
    errors = []
    page = chromium.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened = 0
    for k in range(60):
        draw = random.Random(f"{kind} {k}")
        folder = tmp_path / str(k)
        folder.mkdir()
        case.place(folder, case.damage(draw))
        try:
            found = records.read(folder)
            story.write(tmp_path / "page.html", [found])
        except ValueError:
            continue
        page.goto((tmp_path / "page.html").as_uri())
        for cell in page.locator(".cell").all()[:1]:
            cell.click()
        assert not errors, k
        opened += 1
    assert opened > 5
    page.close()
