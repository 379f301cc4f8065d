"""Text that people and programs hand us: refused at the door is what PostgreSQL cannot store, and what reads otherwise than it is."""

import re
from typing import Any

from pgwerk_django.exceptions import shown

LONGEST_NAME = 200
DEEPEST_JSON = 100  # levels
LONGEST_ERROR = 50_000  # characters of an error on a job's row
# Control characters, what ends a line or turns it around (one name could be read as another), and halves of surrogate
# pairs, which have no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def storable(text: str, limit: int | None = None) -> str:
    """Return text as PostgreSQL can store it: NUL becomes `\\0`, half a surrogate pair `?`; the first `limit` characters. Never raises."""
    text = str.__str__(text)[:limit]
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()[:limit]


def storable_end(text: str, limit: int) -> str:
    """Return the last `limit` characters as `storable` does: the end of a traceback says what happened. Never raises."""
    return storable(str.__str__(text)[-limit:])[-limit:]


def text(value: object, option: str, *, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{option} must be a string, got {shown(value)}")
    if not value or len(value) > longest or _UNPRINTABLE.search(value):
        raise ValueError(f"{option} must have 1 to {longest} characters and no control characters, got {shown(value)}")
    return value


def free_text(value: object, option: str, *, longest: int | None = None) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{option} must be a string, got {shown(value)}")
    if longest is not None and len(value) > longest:
        raise ValueError(f"{option} must have at most {longest} characters, got {len(value)}: {shown(value)}")
    if _UNSTORABLE.search(value):
        raise ValueError(f"{option} must not contain a NUL character or half a surrogate pair, got {shown(value)}")
    return value


def person(value: object, option: str = "by") -> str:
    """Who did something; "" where nobody says."""
    return free_text(value, option, longest=LONGEST_NAME)


def is_deep(value: Any) -> bool:
    """Whether a value has more levels than `DEEPEST_JSON`. Level by level, so that nothing here is as deep as the value."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        if not inner:
            return False
        level = [each for values in inner for each in values]
    return any(isinstance(each, dict | list) for each in level)
