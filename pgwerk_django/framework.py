"""Django Tasks, whichever is here: `django.tasks` of Django 6, else its backport. The one place where it is imported."""

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pgwerk_django.exceptions import TargetUnavailable


@functools.cache
def framework(module: str = "") -> Any:
    """The package, or a `module` of it; loads no model. Raises `TargetUnavailable` where there is neither."""
    package = next((name for name in ("django.tasks", "django_tasks") if find_spec(name)), None)
    if package is None:
        raise TargetUnavailable("Django Tasks is not installed: pip install 'pgwerk-django[tasks]'")
    return import_module(f"{package}.{module}" if module else package)
