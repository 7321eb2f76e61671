"""One HTML file that shows a dict: data, style and script in it, nothing fetched.

The dict goes in as JSON, and the script puts texts into the page as texts only: no file that was
read can bring markup or code along.  What the page says of the dict stands in page/.
"""

import base64
import hashlib
import json
import math
import pathlib
from typing import Any

PARTS = pathlib.Path(__file__).parent / "page"


def render(data: dict[str, Any]) -> str:
    """The page of what page/page.js describes."""
    style = _part("page.css")
    script = _part("page.js")
    # By their hashes: whatever else should ever get in is no script and asks nobody.
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        f"img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    filled = {"@POLICY@": policy, "@STYLE@": style, "@SCRIPT@": script, "@DATA@": _json(data)}
    page = _part("page.html")
    for mark, text in filled.items():
        before, found, after = page.partition(mark)
        if not found:
            raise ValueError(f"page.html has no {mark}")
        page = before + text + after
    return page


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(data: dict[str, Any]) -> str:
    """JSON in which no `</script>` or `<!--` can stand, whatever the texts are."""
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:  # seldom, and so not looked for every time
        text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c")


def _finite(value: Any) -> Any:
    """With texts for the numbers that JSON has none for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite else str(value)
