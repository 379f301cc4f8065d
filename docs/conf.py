"""The documentation's site: `make docs`. It reads the package, and connects to nothing."""

import sys
from pathlib import Path

import django
from django.conf import settings
from pygments.lexers import TextLexer

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "pgwerk_django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
    PGWERK={"AUTODISCOVER": ()},
    USE_TZ=True,
)
django.setup()

from pgwerk_django import __version__  # noqa: E402  once Django is set up

project = "pgwerk_django"
author = "the pgwerk_django contributors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code", "proofs", "pictures"]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# What a name in backticks means in our docstrings.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# References to our own things must lead somewhere; to look those of others up would take a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pgwerk_django).*"),
    (r"py:class", r"pgwerk_django\.(loop\.\w+|registry\.(Options|Registry)|policies\.\w+|models\.State|\w+\.Function)"),
]

html_theme = "furo"
html_title = f"pgwerk_django {release}"
html_static_path = ["_static"]
html_css_files = ["pgwerk.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def setup(app):
    app.add_lexer("crontab", TextLexer)
