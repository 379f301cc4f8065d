"""Everything this package raises on purpose beyond `ValueError`, `TypeError` and `Schedule.DoesNotExist`."""

import datetime as dt
import reprlib
import traceback
from types import TracebackType
from typing import Any, cast

from django.db import ProgrammingError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
LONGEST_SHOWN = 300  # of a list of long texts


def shown(value: object, limit: int = 60) -> str:
    """A value as an error message shows it: in one line, cut short, and never walked through to its end."""
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    # Python refuses to print an integer of more than 4300 digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        is_short = value is None or isinstance(value, int | float | dt.timedelta | dt.datetime)
        text = repr(value) if is_short else _short.repr(value)
    except Exception:  # noqa: BLE001  # such an integer somewhere inside; and any class has a `__repr__` of its own
        return f"a value of type {type(value).__name__!r}"
    return in_one_line(text[:LONGEST_SHOWN])


def in_one_line(text: str) -> str:
    """With what would break the line, or turn it around, as Python escapes it."""
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


NO_TEXT = "<exception str() failed>"  # as Python's own tracebacks say it


def text_of(error: object) -> str:
    """Return the message of an exception. Never raises: for each exception that code of others raised, whatever its class does."""
    try:
        return _exactly_text(str(error))
    except BaseException:  # noqa: BLE001  # `__str__` may raise SystemExit too, or return something else than a string
        return NO_TEXT


def named(error: BaseException) -> str:
    """Return the name of an exception's class and its message. Never raises."""
    return f"{_name_of(type(error), '__name__')}: {text_of(error)}"


def summary_of(error: BaseException) -> str:
    """Return the first line of `named(error)`. Never raises."""
    return named(error).splitlines()[0]


def traceback_of(error: BaseException) -> str:
    """Return an exception as Python prints it, with its causes and notes. Never raises; what cannot be shown is left out."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001  # its notes, causes, group or `SyntaxError` attributes may be anything
        return _short_traceback_of(error)


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return `exc_info` for a record of `logging`; in place of an exception that no handler could show, one that it can. Never raises."""
    stack = _stack_of(error)
    try:
        traceback.format_exception(error)
    except BaseException:  # noqa: BLE001
        error = PgwerkError(named(error))
    return type(error), error, stack


def _stack_of(error: BaseException) -> TracebackType | None:
    # By the getter of BaseException: the class may have a property of this name.
    return cast("TracebackType | None", BaseException.__dict__["__traceback__"].__get__(error))


def _short_traceback_of(error: BaseException) -> str:
    try:
        stack = traceback.format_tb(_stack_of(error))
    except BaseException:  # noqa: BLE001
        stack = []
    return "".join(["Traceback (most recent call last):\n", *stack, f"{class_path(error)}: {text_of(error)}\n"])


def class_path(error: BaseException | type[BaseException]) -> str:
    """Return the dotted path of an exception's class. Never raises."""
    # No `isinstance`: it asks the object for its `__class__`, which may be a property that raises.
    kind: Any = error if issubclass(type(error), type) else type(error)
    return f"{_name_of(kind, '__module__')}.{_name_of(kind, '__qualname__')}"


def is_ours(error: BaseException) -> bool:
    """Return whether an exception is a `PgwerkError`. Never raises, and no `__class__` deceives it."""
    return issubclass(type(error), PgwerkError)


def _name_of(kind: type, attribute: str) -> str:
    try:
        return _exactly_text(getattr(kind, attribute))
    except BaseException:  # noqa: BLE001  # `__module__` may be anything, and a metaclass may do anything
        return "unknown"


def _exactly_text(value: str) -> str:
    """Return a plain `str`: a subclass may override any method, and could not be unpickled elsewhere."""
    return str.__str__(value)


class PgwerkError(Exception):
    """The base of our own errors."""


class JobTimeout(PgwerkError):
    """A job ran longer than its `timeout`."""

    def __init__(self, timeout: int) -> None:
        super().__init__(f"timed out after {timeout} s")


class JobCancelled(PgwerkError):
    """A job was stopped because somebody cancelled it. Its function may raise this itself, once `cancelled` is true."""

    def __init__(self, message: str = "cancelled while it ran") -> None:
        super().__init__(message)


class JobSkipped(PgwerkError):
    """A job was not run: its row says why. Nothing raises this; as a `TaskResult` such a job has it for an error."""


class ProcessDied(PgwerkError):
    """The process that ran a job ended under it."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the process that ran it died: {how}")


class UnsupportedProcess(PgwerkError):
    """A worker cannot run in this process."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"a worker must run in a process without {package}'s monkey patches, under which it cannot talk to its child"
            f" processes: start it without them, got a process that {package} has patched"
        )


class WorkerLost(PgwerkError):
    """The lease of a job ran out: the worker that held it is gone."""

    def __init__(self) -> None:
        super().__init__("worker lost")


class TransactionLeftOpen(PgwerkError):
    """A job returned with a transaction open, which was rolled back."""

    def __init__(self, aliases: list[str]) -> None:
        super().__init__(f"it left a transaction open, which was rolled back, on: {', '.join(map(repr, aliases))}")


class TooManyJobs(PgwerkError):
    """A test ran, or was about to run, more jobs than it said it would."""

    def __init__(self, max_jobs: int, doing: str) -> None:
        super().__init__(f"more than max_jobs={max_jobs} jobs: {doing}")


class FunctionNotFound(PgwerkError):
    """A dotted path does not lead to something callable.

    `unknown`: the module does not exist here, or does not have the name. Newer code, or older, may have it.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class CalledTooEarly(PgwerkError, ProgrammingError):
    """A call that needs the tables was made while Django starts, or before `migrate` made them."""


class TargetUnavailable(PgwerkError):
    """A target cannot be used here: its package is missing, or it is not configured."""


class ExtraMissing(PgwerkError, ImportError):
    """An optional part of ours needs a package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'pgwerk-django[{extra}]'")


class SourceUnreadable(PgwerkError):
    """What schedules were to be imported from cannot be read at all."""
