"""The catalogs are complete, say the same as what is compiled of them, and reach the pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polib
import pytest
from django.contrib.auth.models import User
from django.utils import translation

import pgwerk_django
from pgwerk_django.admin.words import recurrence_in_words
from pgwerk_django.models import Status
from tests.test_admin import JOBS, LIST, browser, make, make_job, page_of

PACKAGE = Path(pgwerk_django.__file__).parent
LANGUAGES = ("de", "fr")
_TRANSLATE = re.compile(r"""{%\s*translate\s+(?:"([^"]*)"|'([^']*)')""")
_BLOCK = re.compile(r"{%\s*blocktranslate[^%]*%}(.*?){%\s*endblocktranslate\s*%}", re.DOTALL)
_PLACE = re.compile(r"%\(\w+\)[.\d]*[a-z]|%[a-z]|%%")


def catalog(language: str) -> polib.POFile:
    return polib.pofile(str(PACKAGE / "locale" / language / "LC_MESSAGES" / "django.po"))


def in_python() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "_",
                "gettext",
                "gettext_lazy",
                "ngettext",
            ):
                first = node.args[0]
                assert isinstance(first, ast.Constant), f"{path}:{node.lineno} is no text that can be looked up"
                yield str(first.value)


def in_templates() -> Iterator[str]:
    for path in PACKAGE.rglob("*.html"):
        text = path.read_text()
        yield from (one or other for one, other in _TRANSLATE.findall(text))
        yield from (re.sub(r"{{\s*(\w+)\s*}}", r"%(\1)s", block) for block in _BLOCK.findall(text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_text_is_in_the_catalog(language: str) -> None:
    known = {entry.msgid for entry in catalog(language) if not entry.obsolete}
    assert sorted({*in_python(), *in_templates()} - known) == []  # make messages, and translate what it adds


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_entry_is_translated_with_the_same_places(language: str) -> None:
    for entry in catalog(language):
        assert entry.translated(), entry.msgid
        assert not entry.fuzzy, entry.msgid
        texts = [entry.msgstr] if not entry.msgid_plural else list(entry.msgstr_plural.values())
        wanted = set(_PLACE.findall(entry.msgid_plural or entry.msgid))
        for text in texts:
            assert set(_PLACE.findall(text)) in (wanted, wanted - {"%(n)d"}), entry.msgid


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_compiled_is_what_is_written(language: str) -> None:
    compiled = polib.mofile(str(PACKAGE / "locale" / language / "LC_MESSAGES" / "django.mo"))
    said = lambda entries: {entry.msgid: (entry.msgstr, entry.msgstr_plural) for entry in entries}  # noqa: E731
    assert said(compiled) == said(catalog(language))


@pytest.mark.parametrize(
    ("language", "expression", "words"),
    [
        ("de", "0 9 * * mon-fri", "Um 09:00 montags bis freitags"),
        ("de", "*/5 * * * *", "Alle 5 Minuten"),
        ("de", "0 8 1 * mon", "Um 08:00 am Tag 1 des Monats oder am Montag"),
        ("fr", "0 9 * * mon-fri", "À 09:00 du lundi au vendredi"),
        ("fr", "30 2 29 2 *", "À 02:30 le jour 29 du mois en février"),
        ("fr", "@hourly", "Chaque heure"),
    ],
)
def test_words_of_a_recurrence(language: str, expression: str, words: str) -> None:
    with translation.override(language):
        found = recurrence_in_words(SimpleNamespace(cron=expression, interval=None))
    assert found.lower() == words.lower()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("de", ("Zeitpläne", "Schlägt fehl", "Jede Stunde", "Warum lief er nicht?", "Kein Scheduler lebt")),
        (
            "fr",
            (
                "Planifications",
                "En échec",
                "Chaque heure",
                "Pourquoi ne s’est-elle pas exécutée",
                "Aucun planificateur",
            ),
        ),
    ],
)
def test_pages_speak_the_sites_language(settings: Any, language: str, told: tuple[str, ...]) -> None:
    settings.LANGUAGE_CODE = language
    row = make()
    make_job(status=Status.FAILED, schedule=row)
    anna = browser(User.objects.create_superuser("anna"))
    html = "".join(
        anna.get(url).content.decode() for url in (LIST, page_of(row), JOBS, "/admin/pgwerk_django/overview/")
    )
    for text in told:
        assert text in html, text
