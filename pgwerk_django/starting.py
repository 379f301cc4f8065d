"""Calls that need the tables, made while Django starts or before `migrate`: refused with an error that says where they belong."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import psycopg.errors
from django.apps import apps
from django.db import ProgrammingError

from pgwerk_django.exceptions import CalledTooEarly

P = ParamSpec("P")
R = TypeVar("R")

_WHERE = (
    "call it in a view, a command or a data migration; to declare a schedule when a module is imported, use @schedule"
)


def at_run_time(function: Callable[P, R]) -> Callable[P, R]:
    """Raise `CalledTooEarly` where the function is called before Django is ready, or where our tables do not exist."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        name = f"{function.__qualname__}()"
        if not apps.ready:
            raise CalledTooEarly(f"{name} was called while Django starts (a module is being imported): {_WHERE}")
        try:
            return function(*args, **kwargs)
        except ProgrammingError as error:
            if not isinstance(error.__cause__, psycopg.errors.UndefinedTable) or "_pgwerk_" not in str(error):
                raise
            raise CalledTooEarly(
                f"{name} was called before 'manage.py migrate' made the tables. If a module calls it while it is imported:"
                f" {_WHERE} (which depends on the migration ('pgwerk_django', '0001_initial'))"
            ) from error.__cause__

    return call
