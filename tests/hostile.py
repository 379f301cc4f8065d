"""Values that nobody should send, and somebody will."""

import datetime as dt
import decimal
import enum
import fractions
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

# Each test takes some of the values, another one others; with this in the environment, all of them.
IS_DEEP = "PGWERK_TEST_DEEP" in os.environ
LONGEST_MESSAGE = 1000  # characters; what goes into a log, a page, a terminal
SCRIPT = "<script>alert('planted')</script>"
IMAGE = "\"'><img src=x onerror=alert(1)>"
FORMAT = "%s %d %(planted)s {0} {planted}"


def deep(depth: int, leaf: Any = None) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def round_and_round() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


class Screaming:
    """Its `repr` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Endless:
    """Its `repr` is huge, and has lines."""

    def __repr__(self) -> str:
        return "endless\n" * 100_000


class Timeless(dt.tzinfo):
    """A zone that does not know its offset."""

    def utcoffset(self, when: dt.datetime | None) -> None:
        return None

    def dst(self, when: dt.datetime | None) -> None:
        return None

    def tzname(self, when: dt.datetime | None) -> str:
        return "nowhere"


class Broken(Timeless):
    """A zone that fails."""

    def utcoffset(self, when: dt.datetime | None) -> None:
        raise ArithmeticError("no offset")


class Word(str):
    """A string that is no plain one."""


class Number(enum.IntEnum):
    SEVEN = 7


TEXTS: dict[str, str] = {
    "empty": "",
    "blank": "  ",
    "10 kB": "x" * 10_000,
    "10 kB of escapes": "\x01" * 10_000,
    "NUL": "a\0b",
    "line feed": "a\nlevel=CRITICAL forged=yes",
    "other line ends": "a\r\x85b\u2028c\u2029d",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "half a pair": "a\ud800b",
    "bidi": "a\u202eb\u2066c",
    "no width": "a\u200bb\ufeffc",
    "not a character": "a\uffff\U0010ffff",
    "combining": "e" + "\u0301" * 500,
    "SQL": "'; DROP TABLE _pgwerk_schedules; --",
    "script": SCRIPT,
    "image": IMAGE,
    "format": FORMAT,
    "template": "{{ 7|add:7 }}{% debug %}",
    "path": "../../../etc/passwd",
    "dashes": "--help",
    "backslashes": "\\u0000\\\\",
}

NUMBERS: dict[str, Any] = {
    "zero": 0,
    "less": -1,
    "true": True,
    "false": False,
    "2**31": 2**31,
    "2**63": 2**63,
    "400 digits": 10**400,
    "5000 digits": 10**5000,
    "less 5000 digits": -(10**5000),
    "fraction": 1.5,
    "tiny": 5e-324,
    "huge": 1e308,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "less infinity": float("-inf"),
    "decimal": decimal.Decimal("sNaN"),
    "rational": fractions.Fraction(1, 3),
    "complex": 1j,
    "enum": Number.SEVEN,
}

INSTANTS: dict[str, Any] = {
    "longest": dt.timedelta.max,
    "least": dt.timedelta.min,
    "a microsecond": dt.timedelta.resolution,
    "no time": dt.timedelta(),
    "first": dt.datetime.min,  # noqa: DTZ901
    "last": dt.datetime.max,  # noqa: DTZ901
    "first, aware": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=14))),
    "last, aware": dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=23, minutes=59))),
    "timeless": dt.datetime(2026, 1, 1, tzinfo=Timeless()),
    "broken": dt.datetime(2026, 1, 1, tzinfo=Broken()),
    "date": dt.date(2026, 1, 1),
    "zone": dt.timezone(dt.timedelta(hours=1)),
    "timeless zone": Timeless(),
}

# Made anew for each use: some can be used only once, or take long to show.
STRUCTURES: dict[str, Callable[[], Any]] = {
    "deep": lambda: deep(50_000),
    "deep enough": lambda: deep(900),
    "deep dicts": lambda: {"a": deep(20_000)},
    "round": round_and_round,
    "wide": lambda: list(range(20_000)),
    "wide dict": lambda: {str(n): n for n in range(10_000)},
    "long text": lambda: ["x" * 100_000],
    "NUL inside": lambda: {"a": ["b\0"]},
    "NUL key": lambda: {"a\0": 1},
    "half a pair inside": lambda: {"a": ["\udfff"]},
    "half a pair key": lambda: {"\ud800": 1},
    "NaN inside": lambda: {"a": [float("nan")]},
    "number keys": lambda: {1: 2},
    "mixed keys": lambda: {1: 2, "1": 3},
    "tuple keys": lambda: {(1, 2): 3},
    "a large number inside": lambda: [10**5000],
    "a huge number inside": lambda: [10**200_000],
    "1e400 inside": lambda: [10**400],
    "set": lambda: {1, 2},
    "bytes": lambda: b"\xff\0",
    "bytearray": lambda: bytearray(b"a"),
    "generator": lambda: (n for n in range(3)),
    "object": object,
    "class": lambda: dict,
    "function": lambda: deep,
    "lambda": lambda: lambda: None,
    "screaming": Screaming,
    "endless": Endless,
    "screaming inside": lambda: [Screaming()],
    "endless inside": lambda: [Endless()],
    "a word": lambda: Word("daily"),
    "empty list": list,
    "empty dict": dict,
    "None inside": lambda: [None],
}


def everything() -> dict[str, Callable[[], Any]]:
    """Name to maker."""

    def constant(value: Any) -> Callable[[], Any]:
        return lambda: value

    plain = {**TEXTS, **NUMBERS, **INSTANTS, "None": None}
    return {**{name: constant(value) for name, value in plain.items()}, **STRUCTURES}


def some(values: Mapping[str, Value], about: str, share: int = 8) -> dict[str, Value]:
    """One in `share` of them, which ones depending on what they are for: together all such tests have them all."""
    if IS_DEEP:
        return dict(values)
    first = zlib.crc32(about.encode())
    return {name: value for place, (name, value) in enumerate(values.items()) if (place + first) % share == 0}
