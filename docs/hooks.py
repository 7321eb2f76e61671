"""Pages of the site that are made of files of the repository: called by mkdocs.

The first page is README.md, and every script of docs/examples stands whole on one page.  Refuses
to know what a page says.
"""

import ast
import pathlib
import re

from mkdocs.config import defaults
from mkdocs.structure import files as structure
from mkdocs.structure import pages

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
TEXTS = ("LICENSE", "NOTICE", "CITATION.cff")
# Links of README.md and of docs/ -> where the same lies in the site.
MOVED = {name: page for page, name in PAGES.items()} | {name: f"{name}.txt" for name in TEXTS}


def on_files(files: structure.Files, config: defaults.MkDocsConfig) -> structure.Files:
    """Adds the pages that are made."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(structure.File.generated(config, page, content=text))
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(structure.File.generated(config, f"{name}.txt", content=text))
    files.append(structure.File.generated(config, "examples.md", content=examples()))
    return files


def examples() -> str:
    """Each script under the first words of its docstring."""
    parts = ["# Examples", "Each of them is a script of at most 60 lines, and a test runs it."]
    for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        words, _, about = ast.get_docstring(ast.parse(source)).partition("\n")
        title, _, rest = words.partition(":")
        code = source.split('"""', 2)[2].strip()
        parts += [f"## {title.rstrip('.')}", f"`docs/examples/{path.name}`: {rest.strip()}"]
        parts += [f"```text\n{about.strip()}\n```", f"```python\n{code}\n```"]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: pages.Page, **_: object) -> str:
    """Links point to the site's own pages."""
    if page.file.src_uri in PAGES:
        markdown = markdown.replace("](docs/", "](")
    for name, place in MOVED.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}\)", f"]({place})", markdown)
    return markdown
