"""The page holds its data as data: whatever the texts are, they end no script and name no host."""

import html.parser
import json
import re

from pirl_jax.monitor import webpage

HOSTILE = "</script><script>alert(1)</script><!-- <img src=http://a.b/c onerror=x> @SCRIPT@ \u2028"


class Scripts(html.parser.HTMLParser):
    """The texts of all scripts, and the tags that could fetch something."""

    def __init__(self):
        super().__init__()
        self.texts, self.fetching, self.inside = [], [], False

    def handle_starttag(self, tag, attributes):
        self.inside = tag == "script"
        if self.inside:
            self.texts.append("")
        if {"src", "href", "action"} & dict(attributes).keys() or tag in ("link", "iframe", "img"):
            self.fetching.append(tag)

    def handle_data(self, text):
        if self.inside:
            self.texts[-1] += text

    def handle_endtag(self, tag):
        self.inside = False


def parsed(data):
    scripts = Scripts()
    scripts.feed(webpage.render(data))
    return scripts


def test_hostile_texts_stay_texts():
    scripts = parsed({"sources": [{"name": HOSTILE, HOSTILE: 1}]})
    data, code = scripts.texts
    assert json.loads(data) == {"sources": [{"name": HOSTILE, HOSTILE: 1}]}
    assert code == (webpage.PARTS / "page.js").read_text(encoding="utf-8")


def test_nothing_is_fetched_and_only_our_script_may_run():
    assert not parsed({}).fetching
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', webpage.render({}))[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http" not in policy


def test_the_script_makes_no_markup_of_texts():
    code = (webpage.PARTS / "page.js").read_text(encoding="utf-8")
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
    ):
        assert way not in code


def test_numbers_that_json_has_none_for_are_texts():
    data, _ = parsed({"a": [float("nan"), 1.5], "b": {"c": float("-inf")}}).texts
    assert json.loads(data) == {"a": ["nan", 1.5], "b": {"c": "-inf"}}
