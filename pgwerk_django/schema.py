"""Whether the tables in the database are those of this version."""

from collections.abc import Container, Iterator
from typing import Any

import psycopg.errors
from django.apps import apps
from django.db import DatabaseError, connections
from django.db.migrations.loader import MigrationLoader

TRIGGERS = {
    "_pgwerk_schedules": (
        "pgwerk_replan",
        "pgwerk_planned_by_hand",
        "pgwerk_wake_inserted",
        "pgwerk_wake_updated",
        "pgwerk_cancel_deleted",
        "pgwerk_cancel_truncated",
    ),
    "_pgwerk_jobs": ("pgwerk_wake_jobs",),
}
MIGRATE = "run 'manage.py migrate' first"
NOT_MADE = f"the tables are missing: {MIGRATE}"
_APP = "pgwerk_django"

_COLUMNS = """
SELECT class.relname, attribute.attname, attribute.attnotnull AND NOT attribute.atthasdef AND attribute.attidentity = ''
FROM unnest(%s::text[]) AS name
JOIN pg_class AS class ON class.oid = to_regclass(quote_ident(name))
JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid
WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
"""
_OBJECTS = """
SELECT tgname FROM unnest(%(tables)s::text[]) AS name JOIN pg_trigger ON tgrelid = to_regclass(quote_ident(name))
UNION ALL
SELECT class.relname FROM unnest(%(tables)s::text[]) AS name JOIN pg_index ON indrelid = to_regclass(quote_ident(name))
JOIN pg_class AS class ON class.oid = indexrelid
"""


def problem(using: str) -> str:
    """Return what is wrong with the tables, and what helps; "" if they are those of this version, or newer and usable."""
    with connections[using].cursor() as cursor:
        cursor.execute(_COLUMNS, [list(_expected())])
        rows = cursor.fetchall()
        cursor.execute(_OBJECTS, {"tables": list(_expected())})
        objects = {name for (name,) in cursor.fetchall()}
    found: dict[str, dict[str, bool]] = {}
    for table, column, must_be_given in rows:
        found.setdefault(table, {})[column] = must_be_given
    if not found:
        return NOT_MADE
    wrong = [*_missing(found), *_unknown(found)]
    wrong += [f"the {kind} {name} is missing" for kind, name in _named(found) if name not in objects]
    return f"{_listed(wrong)}: {_advice(using)}" if wrong else ""


def explained(error: Exception, using: str) -> str:
    """Return `problem()` if the error may come from it, else ""."""
    kinds = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.NotNullViolation)
    if not isinstance(error.__cause__, kinds):
        return ""
    try:
        return problem(using)
    except DatabaseError:  # amid a transaction that the error has ended
        return NOT_MADE if isinstance(error.__cause__, kinds[0]) else ""


def _expected() -> dict[str, Any]:
    return {model._meta.db_table: model for model in apps.get_app_config(_APP).get_models() if model._meta.managed}


def _missing(found: dict[str, dict[str, bool]]) -> Iterator[str]:
    for table, model in _expected().items():
        if table not in found:
            yield f"the table {table} is missing"
            continue
        for field in model._meta.concrete_fields:
            if field.column not in found[table]:
                yield f"the column {table}.{field.column} is missing"


def _unknown(found: dict[str, dict[str, bool]]) -> Iterator[str]:
    """Columns that no row of this version could have. Other columns of a newer version do no harm."""
    for table, columns in found.items():
        known = {field.column for field in _expected()[table]._meta.concrete_fields}
        for column, must_be_given in columns.items():
            if must_be_given and column not in known:
                yield f"the column {table}.{column} is unknown, and has no default"


def _named(found: Container[str]) -> Iterator[tuple[str, str]]:
    for table, model in ((table, model) for table, model in _expected().items() if table in found):
        yield from (("trigger", name) for name in TRIGGERS.get(table, ()))
        yield from (("index", index.name) for index in model._meta.indexes)
        yield from (
            ("index", each.name) for each in model._meta.constraints if type(each).__name__ == "UniqueConstraint"
        )


def _listed(wrong: list[str]) -> str:
    rest = len(wrong) - 5
    return ", ".join(wrong[:5]) + (f" and {rest} more" if rest > 0 else "")


def _advice(using: str) -> str:
    """`migrate` helps only where it has something to do."""
    loader = MigrationLoader(connections[using])
    ours = {key for key in loader.disk_migrations if key[0] == _APP}
    applied = {key for key in loader.applied_migrations if key[0] == _APP}
    if ours - applied:
        return MIGRATE
    if newer := sorted(name for _app, name in applied - ours):
        return f"a newer version of {_APP} migrated these tables ({newer[-1]}): install that version"
    return (
        f"another version of {_APP} made these tables, and 'migrate' has nothing to do: use that version, or make them anew,"
        f" without the schedules and jobs that are in them: drop the tables and functions whose names begin with _pgwerk_,"
        f" run 'manage.py migrate --fake {_APP} zero', then 'manage.py migrate'"
    )
