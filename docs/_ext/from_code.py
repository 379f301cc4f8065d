"""The reference, made from the code when the site is built: each directive here gives Markdown that cannot drift.

Words that the code does not hold come from README's tables, which `tests/test_readme.py` compares with the code.
"""

import argparse
import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import load_command_class
from django.core.management.base import BaseCommand, DjangoHelpFormatter
from django.db import connection, models
from django.utils.encoding import force_str
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pgwerk_django import backend, checks, conf, registry, signals
from pgwerk_django.scheduler import Scheduler

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def readme_rows(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [cells(line) for line in section.splitlines() if line.startswith("|")][2:]


def table(header: list[str], rows: list[list[str]]) -> str:
    def line(row: list[str]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)]) + "\n"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


# -- settings


def settings_reference() -> str:
    words = {row[0].strip("`"): row[2] for row in readme_rows("Settings")}
    return "\n".join(
        f"## {field.name}\n\n{sentence(words[field.name])}\n\nDefault: `{field.default!r}`{in_words(field)}. It takes {accepted(field.name)}.\n"
        for field in dataclasses.fields(conf.Conf)
    )


def in_words(field: Any) -> str:
    """A long time to live in days, beside its seconds."""
    is_ttl = isinstance(field.default, int) and field.default >= conf.DAY
    return f" ({field.default // conf.DAY} days)" if is_ttl else ""


def accepted(name: str) -> str:
    """What the setting's own reader says when it refuses a value."""
    try:
        conf._read(name, object())
    except ImproperlyConfigured as refused:
        (expected,) = re.findall(r"must be (.*), got", str(refused))
    optional = getattr(conf.Conf(), name) is None
    return expected + (", or `None`" if optional else "")


# -- @schedule


def options_reference() -> str:
    hints = get_type_hints(registry.Options)
    rows = [
        [code(option), code(type_text(hints[option])), default, row[2]]
        for row in readme_rows("Declaring")
        for option, default in each_with_default(re.findall(r"`(\w+)`", row[0]), row[1])
    ]
    return table(["Option", "Takes", "Default", "What it says"], rows)


def each_with_default(options: list[str], said: str) -> Iterator[tuple[str, str]]:
    """Of several in one row each has its own default, or all have the same."""
    defaults = said.split(", ")
    yield from zip(options, defaults if len(defaults) == len(options) else [said] * len(options), strict=True)


def type_text(hint: Any) -> str:
    text = str(hint) if get_args(hint) else hint.__name__
    text = re.sub(r"\b(typing|collections\.abc|datetime)\.", "", text)
    return text.replace(" | None", "")


# -- targets


def targets_reference() -> str:
    return table(
        ["What is scheduled", "Target", "Who runs it", "Sent", "Options that it keeps"],
        readme_rows("Who runs the jobs"),
    )


# -- commands


def commands_reference() -> str:
    return "\n".join(part for name in checks.COMMANDS for part in command_reference(name))


def command_reference(name: str) -> Iterator[str]:
    command = load_command_class("pgwerk_django", name)
    parser = command.create_parser("manage.py", name)
    yield f"## {name}\n\n{command.help}\n"
    yield from parser_reference(parser, f"python manage.py {name}")


def parser_reference(parser: argparse.ArgumentParser, prog: str) -> Iterator[str]:
    own = [action for action in parser._actions if not is_djangos(action)]
    verbs = [action for action in own if isinstance(action, argparse._SubParsersAction)]
    rows = [
        [code(invocation(action)), force_str((action.help or "") % vars_of(action))]
        for action in own
        if action not in verbs
    ]
    if rows:
        yield table(["Argument", "What it says"], rows)
    for action in verbs:
        said = {choice.dest: choice.help for choice in action._choices_actions}
        for verb, below in action.choices.items():
            yield f"### {prog.removeprefix('python manage.py ')} {verb}\n\n{sentence(said[verb])}\n"
            yield from parser_reference(below, f"{prog} {verb}")


_DJANGOS = BaseCommand().create_parser("manage.py", "x")


def is_djangos(action: argparse.Action) -> bool:
    return any(option in _DJANGOS._option_string_actions for option in action.option_strings)


def vars_of(action: argparse.Action) -> dict[str, Any]:
    return {name: value for name, value in vars(action).items() if value is not argparse.SUPPRESS}


def invocation(action: argparse.Action) -> str:
    formatter = DjangoHelpFormatter("", width=200)
    return formatter._format_action_invocation(action)


# -- checks


def checks_reference() -> str:
    found: dict[str, list[str]] = {}
    parsed = [ast.parse(inspect.getsource(module)) for module in (checks, backend)]
    for function in (each for tree in parsed for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
        calls = [each for each in ast.walk(function) if isinstance(each, ast.Call) and id_of(each)]
        for call in calls:
            kept = found.setdefault(id_of(call), [call.func.attr.lower()])  # type: ignore[attr-defined]
            # Of a function with several ids, what each says; of one with a single id, what the function says of it.
            sources = [ast.get_docstring(function), message_of(call)]
            ordered = sources if len({id_of(each) for each in calls}) == 1 else reversed(sources)
            means = " ".join(next(filter(None, ordered), "").split()).rstrip(".")
            assert means, f"nothing says what {id_of(call)} means: give {function.name} a docstring"
            if means not in kept:
                kept.append(means)
    return table(
        ["Id", "Level", "What is checked, or what it says"],
        [[code(check_id), level, "; ".join(means)] for check_id, (level, *means) in sorted(found.items())],
    )


def id_of(call: ast.Call) -> str:
    """That of a check's message; empty for another call."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("Error", "Warning"):
        return ""
    return next((str(ast.literal_eval(each.value)) for each in call.keywords if each.arg == "id"), "")


def message_of(call: ast.Call) -> str:
    """Its text, with `…` for what is only known then; empty where all of it is."""
    match call.args[0]:
        case ast.Constant(value):
            return str(value)
        case ast.JoinedStr(parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return ""


# -- signals

# The comment behind a signal, or right above it.
_SIGNAL = re.compile(r"^((?:# .*\n)*)(\w+) = Signal\(\)(?:  # (.*))?$", re.MULTILINE)


def signals_reference() -> str:
    found = _SIGNAL.findall(inspect.getsource(signals))
    arguments = {
        name: behind or " ".join(line.strip("# ") for line in above.splitlines()) for above, name, behind in found
    }
    rows = []
    for signal, (name, level) in signals._LEVELS.items():
        assert getattr(signals, name) is signal
        rows.append([code(name), arguments[name], signals.logging.getLevelName(level)])
    return table(["Signal, and first word of its log line", "What receivers get", "Level"], rows)


# -- tables


def tables_reference() -> str:
    ours = [model for model in apps.get_app_config("pgwerk_django").get_models() if model._meta.managed]
    return "\n".join(part for model in ours for part in table_reference(model))


def table_reference(model: type[models.Model]) -> Iterator[str]:
    meta = model._meta
    yield f"## {meta.db_table}\n\n{inspect.cleandoc(model.__doc__ or '')} In Python: `pgwerk_django.models.{model.__name__}`.\n"
    yield table(
        ["Column", "Type", "Null", "Default"],
        [
            [code(field.column), code(field.db_type(connection)), "yes" if field.null else "", code(default_sql(field))]
            for field in meta.concrete_fields
        ],
    )
    editor = connection.schema_editor(collect_sql=True)
    objects = [(each.name, each.create_sql(model, editor)) for each in [*meta.indexes, *meta.constraints]]
    if objects:
        yield table(
            ["Index or constraint", "SQL"], [[code(name), code(shorter(sql, meta.db_table))] for name, sql in objects]
        )


def default_sql(field: Any) -> str:
    if field.primary_key and not field.has_db_default():
        return "(generated)"
    if not field.has_db_default():
        return ""
    sql, parameters = (
        field.model._default_manager.all()
        .query.get_compiler(connection=connection)
        .compile(field._db_default_expression)
    )
    quote = connection.schema_editor(collect_sql=True).quote_value
    return sql % tuple(map(quote, parameters))


def shorter(sql: Any, name: str) -> str:
    """Without what the column before it and the heading say already."""
    text = re.sub(r'^(ALTER TABLE "\w+" ADD CONSTRAINT|CREATE INDEX) "\w+" ', "", str(sql))
    return " ".join(text.replace(f'ON "{name}" ', "").replace(f'"{name}".', "").replace('"', "").split())


# -- the async twins


def twins_reference() -> str:
    twins = [name for name, method in vars(Scheduler).items() if inspect.iscoroutinefunction(method)]
    return ", ".join(map(code, sorted(twins))) + ".\n"


class _FromCode(SphinxDirective):
    make: Callable[[], str]

    def run(self) -> list[nodes.Node]:
        # The page is read anew whenever the site is built: what it is made from is no file that Sphinx watches.
        self.env.note_reread()
        return self.parse_text_to_nodes(type(self).make(), allow_section_headings=True)


DIRECTIVES = {
    "settings": settings_reference,
    "options": options_reference,
    "commands": commands_reference,
    "checks": checks_reference,
    "signals": signals_reference,
    "tables": tables_reference,
    "targets": targets_reference,
    "twins": twins_reference,
}


def _leave_twins_out(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """They are listed by name: what they do is said of the other."""
    return True if kind == "class" and inspect.iscoroutinefunction(member) and not member.__doc__ else None


def setup(app: Sphinx) -> dict[str, bool]:
    for name, make in DIRECTIVES.items():
        app.add_directive(
            f"pgwerk-{name}", type(f"{name.title()}Directive", (_FromCode,), {"make": staticmethod(make)})
        )
    app.connect("autodoc-skip-member", _leave_twins_out)
    return {"parallel_read_safe": True}
