"""The site: every page is in its navigation, and a browser shows it without asking anybody else.

`bash launch/docs.sh` builds it and refuses links, headings and pages that do not exist.
"""

import functools
import http.server
import pathlib
import re
import shutil
import subprocess
import threading

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SITE = ROOT / "site"
MADE = {"index.md", "examples.md", "contributing.md", "changes.md"}  # by docs/hooks.py
SIZES = {"wide": (1280, "light"), "narrow": (390, "dark")}


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:\n]+: (\w+\.md)$", text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in (ROOT / "docs").glob("*.md")} | MADE


def test_every_package_of_the_generator_has_its_hash():
    lines = (ROOT / "requirements-docs.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 20
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( --hash=sha256:[0-9a-f]{64}){1,2}", pin), pin


def test_the_script_refuses_what_it_does_not_know(tmp_path):
    (tmp_path / "launch").mkdir()
    script = shutil.copy(ROOT / "launch" / "docs.sh", tmp_path / "launch")
    command = ["bash", str(script), "deploy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "deploy is neither build nor serve" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["launch"]


@pytest.mark.slow
def test_a_page_that_nobody_reaches_and_a_heading_that_is_none_are_errors(tmp_path):
    if not (ROOT / ".venv-docs" / "pins").exists():
        pytest.skip("the site is not built; run: bash launch/docs.sh")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("requirements*"), ROOT / "mkdocs.yml"]:
        shutil.copy(path, tmp_path)
    for name in ("LICENSE", "NOTICE", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in (".venv", ".venv-docs", "pirl_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs" / "lonely.md").write_text("[there](serve.md#nowhere)\n")
    command = ["bash", str(tmp_path / "launch" / "docs.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "lonely.md" in done.stderr and "does not contain an anchor '#nowhere'" in done.stderr


@pytest.fixture(scope="module")
def pages():
    """Addresses of the pages, by name, on a server of our own."""
    names = [path.stem for path in sorted(SITE.glob("*.html")) if path.stem != "404"]
    if not names:
        pytest.skip("the site is not built; run: bash launch/docs.sh")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {name: f"http://127.0.0.1:{server.server_port}/{name}.html" for name in names}
        server.shutdown()
        thread.join()


@pytest.fixture
def window(chromium):
    """window(width, scheme, home) -> a page; at the end nothing went wrong, nobody was asked."""
    wrong = []
    contexts = []

    def open_(width, scheme, home):
        size = {"width": width, "height": 900}
        contexts.append(chromium.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on("console", lambda line: wrong.append(f"{page.url}: {line.text}"))

        def notice(request):
            if not request.url.startswith((home, "data:", "blob:")):
                wrong.append(f"{page.url}: asks {request.url}")

        page.on("request", notice)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", SIZES.values(), ids=SIZES)
def test_every_page_fits_and_asks_nobody(pages, window, width, scheme):
    home = pages["index"].removesuffix("index.html")
    page = window(width, scheme, home)
    for name, address in pages.items():
        page.goto(address)
        assert page.locator("h1").first.is_visible(), name
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{name} is {wide} px too wide"
        blank = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(blank) == [], name


@pytest.mark.slow
def test_the_search_finds_a_symptom(pages, window):
    page = window(1280, "light", pages["index"].removesuffix("index.html"))
    page.goto(pages["index"])
    words = page.locator("[data-md-component=search-query]")
    words.click()
    words.press_sequentially("black images")
    first = page.locator(".md-search-result__item a").first
    first.wait_for(timeout=20_000)
    assert "troubleshooting.html" in first.get_attribute("href")
