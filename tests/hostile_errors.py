"""Exceptions that do not behave, by name. A job raises one by `raise_hostile`."""

import builtins
from collections.abc import Callable
from typing import Any


class HTTPFailed(Exception):
    """As a client library has them: its text reads a response that there is not."""

    response: Any = None

    def __str__(self) -> str:
        return f"status {self.response.status_code}"


class TextIsNoString(Exception):
    def __str__(self) -> Any:
        return 42


class TextExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class TextInterrupts(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class TextRecurses(Exception):
    def __str__(self) -> str:
        return str(self)


class NothingCanBeAsked(Exception):
    """Not even its class, cause or traceback."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @property
    def __cause__(self) -> Any:
        raise RuntimeError("no cause")

    @property
    def __traceback__(self) -> Any:
        raise RuntimeError("no traceback")

    @property
    def __notes__(self) -> Any:
        raise SystemExit(4)

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class NotesExit(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit(5)


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__name__", "__str__"):
            raise SystemExit(6)
        return super().__getattribute__(name)


class ClassIsHostile(Exception, metaclass=Meta):
    pass


class ModuleIsNoString(Exception):
    pass


ModuleIsNoString.__module__ = 5  # type: ignore[assignment]


class Shouting(str):
    """Text that another process cannot unpickle, and that does not work as text."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")

    def replace(self, *args: Any) -> Any:
        raise RuntimeError("no replace")

    __getitem__ = __len__ = encode = splitlines = replace  # type: ignore[assignment]


class TextIsASubclass(Exception):
    def __str__(self) -> str:
        return Shouting("loud")


class LiesAboutItsClass(Exception):
    """It is not what the job was cancelled with."""

    @property
    def __class__(self) -> Any:
        from pgwerk_django.exceptions import JobCancelled

        return JobCancelled


def _chained(length: int) -> Exception:
    error = ValueError("the last")
    for _ in range(length):
        above = ValueError("in between")
        above.__cause__ = error
        error = above
    return error


def _syntax_error() -> Exception:
    error = SyntaxError("odd")
    error.lineno = error.offset = error.text = error.filename = object()  # type: ignore[assignment]
    return error


def _in_a_loop() -> Exception:
    one, other = ValueError("one"), HTTPFailed()
    one.__cause__, other.__cause__ = other, one
    return one


HOSTILE: dict[str, Callable[[], BaseException]] = {
    **{
        each.__name__: each
        for each in (
            HTTPFailed, TextIsNoString, TextExits, TextInterrupts, TextRecurses, NothingCanBeAsked, NotesExit,
            ModuleIsNoString, TextIsASubclass, LiesAboutItsClass,
        )
    },
    "ClassIsHostile": ClassIsHostile,
    "SyntaxError": _syntax_error,
    "a loop of causes": _in_a_loop,
    "3000 causes": lambda: _chained(3000),
    "20 MB": lambda: ValueError("x" * 20 * 2**20),
    "NUL and surrogates": lambda: ValueError("a \0 and half a pair \ud800"),
    "an argument without repr": lambda: ValueError(NothingCanBeAsked(), HTTPFailed()),
    "a group": lambda: BaseExceptionGroup("group", [HTTPFailed(), KeyboardInterrupt(), ExceptionGroup("in", [TextExits()])]),
    **{
        name: getattr(builtins, name)
        for name in ("KeyboardInterrupt", "SystemExit", "GeneratorExit", "StopIteration", "MemoryError", "RecursionError")
    },
}  # fmt: skip


def raise_hostile(name: str) -> None:
    raise HOSTILE[name]()


async def araise_hostile(name: str) -> None:
    raise HOSTILE[name]()
