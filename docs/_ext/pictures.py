"""Pictures that follow the page's colours, light or dark, while the Markdown stays as plain as it is elsewhere.

A diagram (of the folder `diagrams`) stands in the page itself, not in an <img>: so it has the colours of the page's style sheet. A screenshot named
`…-light.png` has a twin, `…-dark.png`, and the page shows the one that fits.
"""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def put_in(app: Sphinx, tree: nodes.document) -> None:
    here = Path(app.env.doc2path(app.env.current_document.docname)).parent
    for image in list(tree.findall(nodes.image)):
        if not image.get("alt"):
            raise ValueError(f"{image['uri']} has no text for those who do not see it")
        path = here / image["uri"]
        if path.suffix == ".svg" and path.parent.name == "diagrams":
            app.env.note_dependency(path)
            image.replace_self(nodes.raw("", diagram(path, image["alt"]), format="html"))
        elif path.stem.endswith("-light"):
            twin = image.deepcopy()
            twin["uri"] = image["uri"].replace("-light.", "-dark.")
            image["classes"].append("only-light")
            twin["classes"].append("only-dark")
            image.parent.insert(image.parent.index(image) + 1, twin)


def diagram(path: Path, said: str) -> str:
    svg = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)  # `pgwerk.css` has it
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(said)}" ', 1)
    return f'<div class="diagram">{svg}</div>'


def setup(app: Sphinx) -> dict[str, bool]:
    # Before Sphinx collects the images that there are.
    app.connect("doctree-read", put_in, priority=100)
    return {"parallel_read_safe": True}
