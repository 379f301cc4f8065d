"""Secrets in arguments and results: shown as stars, by the names that `PGWERK["MASK"]` has patterns for."""

import functools
import inspect
import re
import sys
from collections.abc import Sequence
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
    names = [*parameters(function), *[""] * len(args)]
    return [STARS if is_secret(name) else masked(each) for name, each in zip(names, args, strict=False)]


def parameters(function: str) -> Sequence[str]:
    """Imports nothing: a row may name anything."""
    module, _dot, attribute = function.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    try:
        return list(inspect.signature(body_of(found)).parameters) if found is not None else []
    except (TypeError, ValueError):
        return []


def call_text(function: str, args: Any, kwargs: Any) -> str:
    """A call in one line, as in Python, with its secrets masked: `shop.tasks.poll(1, feed_id=2)`."""
    positional = masked_args(function, args)
    keywords = masked(kwargs)
    given = [shown(each) for each in positional] if isinstance(positional, list) else [shown(positional)]
    given += [f"{name}={shown(value)}" for name, value in keywords.items()] if isinstance(keywords, dict) else []
    return in_one_line(f"{function}({', '.join(given)})")


def unmasked(value: Any, before: Any) -> Any:
    """What a person sent back, with the stars that were left alone turned into what they stood for."""
    if value == STARS:
        return before
    if isinstance(value, dict) and isinstance(before, dict):
        return {key: unmasked(each, before.get(key, each)) for key, each in value.items()}
    if isinstance(value, list) and isinstance(before, list):
        rest = value[len(before) :]
        return [unmasked(each, old) for each, old in zip(value, before, strict=False)] + rest
    return value
