"""A test named in the text, as in `tests/test_tick.py::test_name`, becomes a link to its source on a page of its own."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
NAMED = re.compile(r"tests/(?P<file>test_\w+)\.py(::(?P<test>\w+))?")


def line_of(file: str, test: str | None) -> int | None:
    """Where a test begins; None where it does not."""
    path = ROOT / "tests" / f"{file}.py"
    if not path.exists():
        return None
    if test is None:
        return 1
    found = re.search(rf"^ *(async )?(def|class) {test}\b", path.read_text(), re.MULTILINE)
    return path.read_text()[: found.start()].count("\n") + 1 if found else None


def link(app: Sphinx, tree: nodes.document, docname: str) -> None:
    if app.builder.format != "html":
        return
    for literal in list(tree.findall(nodes.literal)):
        named = NAMED.fullmatch(literal.astext())
        if named is None or isinstance(literal.parent, nodes.reference):
            continue
        line = line_of(named["file"], named["test"])
        if line is None:
            raise ValueError(f"{docname}: there is no {literal.astext()}")
        app.env.named_tests = {*getattr(app.env, "named_tests", ()), named["file"]}
        uri = f"{'../' * docname.count('/')}tests/{named['file']}.html#L-{line}"
        reference = nodes.reference("", "", internal=True, refuri=uri)
        literal.replace_self(reference)
        reference += nodes.literal("", named["test"] or named.group())


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    formatter = HtmlFormatter(lineanchors="L", cssclass="highlight")
    for file in sorted(getattr(app.env, "named_tests", ())):
        source = (ROOT / "tests" / f"{file}.py").read_text()
        title = f"tests/{file}.py"
        body = f"<h1>{html.escape(title)}</h1>{highlight(source, PythonLexer(), formatter)}"
        yield f"tests/{file}", {"title": title, "body": body, "parents": []}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", link)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
