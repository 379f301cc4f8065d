"""Diagrams stand in the page itself, not in an <img>: so their colours follow the page's, light or dark."""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def put_in(app: Sphinx, tree: nodes.document) -> None:
    for image in list(tree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"].lstrip("/"))
        if path.suffix != ".svg" or path.parent.name != "diagrams":
            continue
        if not image.get("alt"):
            raise ValueError(f"{image['uri']} has no text for those who do not see it")
        svg = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)  # `pgwerk.css` has it
        label = html.escape(image["alt"])
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        image.replace_self(nodes.raw("", f'<div class="diagram">{svg}</div>', format="html"))
        tree.settings.env.note_dependency(str(path))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", put_in)
    return {"parallel_read_safe": True}
