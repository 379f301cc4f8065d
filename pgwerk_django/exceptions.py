"""Everything this package raises on purpose beyond `ValueError`, `TypeError` and `Schedule.DoesNotExist`."""

import datetime as dt
import reprlib

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
    """A dotted path does not lead to something callable."""


class TargetUnavailable(PgwerkError):
    """A target cannot be used here: its package is missing, or it is not configured."""


class ExtraMissing(PgwerkError, ImportError):
    """An optional part of ours needs a package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'pgwerk-django[{extra}]'")


class SourceUnreadable(PgwerkError):
    """What schedules were to be imported from cannot be read at all."""
