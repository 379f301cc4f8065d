"""Secrets in arguments and results: shown as stars, by the names that `PGWERK["MASK"]` has patterns for."""

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any

from pgwerk_django import conf
from pgwerk_django.exceptions import in_one_line, shown
from pgwerk_django.registry import body_of

STARS = "********************"  # Django's own


@functools.lru_cache(maxsize=8)
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE) if patterns else None


def is_secret(name: str) -> bool:
    pattern = _pattern(conf.current().MASK)
    return pattern is not None and pattern.search(name) is not None


def masked(value: Any) -> Any:
    """A copy in which the values of secret keys are stars, however deep they lie."""
    if isinstance(value, dict):
        return {key: STARS if is_secret(str(key)) else masked(each) for key, each in value.items()}
    return [masked(each) for each in value] if isinstance(value, list) else value


def masked_args(function: str, args: Any) -> Any:
    """Positional arguments go by the names of the function's parameters, where this process has it."""
    if not isinstance(args, list):
        return masked(args)
    names = itertools.chain(parameters(function), itertools.repeat(""))
    return [STARS if is_secret(name) else masked(each) for name, each in zip(names, args, strict=False)]


def parameters(function: str) -> Iterator[str]:
    """The name of each positional argument in turn, `*args` again and again. Imports nothing: a row may name anything."""
    module, _dot, attribute = function.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    try:
        known = list(inspect.signature(body_of(found)).parameters.values()) if found is not None else []
    except (TypeError, ValueError):
        return
    # A Django Task that takes its context gets it besides the arguments.
    for parameter in known[1:] if getattr(found, "takes_context", False) else known:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            yield from itertools.repeat(parameter.name)
        yield parameter.name


def call_text(function: str, args: Any, kwargs: Any) -> str:
    """A call in one line, as in Python, with its secrets masked: `shop.tasks.poll(1, feed_id=2)`."""
    positional = masked_args(function, args)
    keywords = masked(kwargs)
    given = [shown(each) for each in positional] if isinstance(positional, list) else [shown(positional)]
    given += [f"{name}={shown(value)}" for name, value in keywords.items()] if isinstance(keywords, dict) else []
    return in_one_line(f"{function}({', '.join(given)})")


_ABSENT = object()


def has_stars(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(has_stars, value.values() if isinstance(value, dict) else value))
    return bool(value == STARS)


def unmasked(value: Any, before: Any) -> Any:
    """What a person sent back, with the stars that were left alone turned into what they stood for.

    Raise `ValueError` for stars that stand for nothing: they would be handed to the function as they are.
    """
    if value == STARS:
        if before is _ABSENT:
            raise ValueError(STARS)
        return before
    if isinstance(value, dict):
        old = before if isinstance(before, dict) else {}
        return {key: unmasked(each, old.get(key, _ABSENT)) for key, each in value.items()}
    if isinstance(value, list):
        rest = itertools.chain(before if isinstance(before, list) else (), itertools.repeat(_ABSENT))
        return [unmasked(each, old) for each, old in zip(value, rest, strict=False)]
    return value
