"""When a schedule is due: the rule of time, and nothing else. Values without a clock or a table."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pgwerk_django import cron
from pgwerk_django.exceptions import shown

YEAR = 365 * 24 * 60 * 60
LONGEST_INTERVAL = 10 * YEAR
_NOTHING = timedelta()
# Instants a schedule may hold: far enough from the ends of Python's calendar that sums with them are instants too.
EXPRESSIBLE = (datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))


def seconds(value: object, option: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    """Whole seconds from an int, a `timedelta`, or a float without a fraction.

    Raises `TypeError` for any other type and `ValueError` for a fraction or a number out of bounds, both naming the option.
    """
    if type(value) is int and minimum <= value and (maximum is None or value <= maximum):
        return value
    # True is an int to Python; to a person who writes `timeout=True` it is no number of seconds.
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise TypeError(f"{option} must be {_wanted(minimum, maximum)}, or a timedelta, got {shown(value)}")
    whole = _whole(value)
    if whole is None or whole < minimum or (maximum is not None and whole > maximum):
        raise ValueError(f"{option} must be {_wanted(minimum, maximum)}, got {shown(value)}")
    return whole


def _whole(value: float | timedelta) -> int | None:
    """None for a fraction, an infinity or no number at all."""
    if isinstance(value, timedelta):
        whole, rest = divmod(value, timedelta(seconds=1))
        return None if rest else whole
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


def _wanted(minimum: int, maximum: int | None) -> str:
    if maximum is None:
        return f"a whole number of seconds, {minimum} or more"
    years, rest = divmod(maximum, YEAR)
    return f"a whole number of seconds from {minimum} to {maximum}" + ("" if rest else f" ({years} years)")


class Recurrence(ABC):
    """A rule that gives due times: aware, in UTC, each once. A naive instant is refused with a `ValueError`."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, instant: datetime) -> datetime | None:
        """The first due time strictly after `instant`; None when there are no more."""

    @abstractmethod
    def latest(self, until: datetime) -> datetime | None:
        """The newest due time not after `until`; None when there has been none."""

    def upcoming(self, after: datetime, n: int) -> list[datetime]:
        """The first `n` due times after an instant; fewer when there are no more."""
        found: list[datetime] = []
        due = self.next_after(after)
        while due is not None and len(found) < n:
            found.append(due)
            due = self.next_after(due)
        return found


@dataclass(frozen=True, slots=True)
class Cron(Recurrence):
    """Due when a cron expression says so, by the clocks of a time zone; see `cron` for daylight saving."""

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        cron.parse(self.expression)
        cron.zone(self.timezone)

    def next_after(self, instant: datetime) -> datetime | None:
        return cron.next_after(self.expression, cron.zone(self.timezone), instant)

    def latest(self, until: datetime) -> datetime | None:
        return cron.latest(self.expression, cron.zone(self.timezone), until)

    def __str__(self) -> str:
        return f"{self.expression} ({self.timezone})"


@dataclass(frozen=True, slots=True, init=False)
class Interval(Recurrence):
    """Due on a fixed grid: at `anchor`, and every so many seconds after it. A late tick does not move it."""

    seconds: int
    anchor: datetime
    _step: timedelta = field(init=False, repr=False, compare=False)

    def __init__(self, seconds: int | timedelta, anchor: datetime) -> None:
        object.__setattr__(self, "seconds", _interval(seconds))
        object.__setattr__(self, "anchor", cron.utc(anchor, "anchor"))
        object.__setattr__(self, "_step", timedelta(seconds=self.seconds))

    def next_after(self, instant: datetime) -> datetime | None:
        elapsed = cron.utc(instant, "instant") - self.anchor
        return self._due(elapsed // self._step + 1) if elapsed >= _NOTHING else self.anchor

    def latest(self, until: datetime) -> datetime | None:
        elapsed = cron.utc(until, "until") - self.anchor
        return self._due(elapsed // self._step) if elapsed >= _NOTHING else None

    def _due(self, number: int) -> datetime | None:
        try:
            return self.anchor + number * self._step
        except OverflowError:
            return None  # beyond the year 9999

    def __str__(self) -> str:
        return f"every {self.seconds} s"


def _interval(value: object) -> int:
    return seconds(value, "interval", minimum=1, maximum=LONGEST_INTERVAL)


@dataclass(frozen=True, slots=True)
class Once(Recurrence):
    """A one-off: its only due time was given with the schedule, and no rule makes another."""

    def next_after(self, instant: datetime) -> datetime | None:
        cron.utc(instant, "instant")
        return None

    def latest(self, until: datetime) -> datetime | None:
        cron.utc(until, "until")
        return None

    def __str__(self) -> str:
        return "once"


@dataclass(frozen=True, slots=True)
class Window(Recurrence):
    """Another recurrence within bounds: none of its due times before `starts_at` or after `ends_at`."""

    recurrence: Recurrence
    starts_at: datetime | None
    ends_at: datetime | None

    def next_after(self, instant: datetime) -> datetime | None:
        if self.starts_at is not None:
            instant = max(cron.utc(instant, "instant"), self.starts_at - timedelta.resolution)
        return self._within(self.recurrence.next_after(instant))

    def latest(self, until: datetime) -> datetime | None:
        if self.ends_at is not None:
            until = min(cron.utc(until, "until"), self.ends_at)
        return self._within(self.recurrence.latest(until))

    def _within(self, due: datetime | None) -> datetime | None:
        early = due is not None and self.starts_at is not None and due < self.starts_at
        late = due is not None and self.ends_at is not None and due > self.ends_at
        return None if early or late else due

    def __str__(self) -> str:
        bounds = [f"from {self.starts_at}"] if self.starts_at else []
        bounds += [f"until {self.ends_at}"] if self.ends_at else []
        return " ".join([str(self.recurrence), *bounds])
