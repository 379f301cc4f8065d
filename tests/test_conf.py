"""`PGWERK = {...}`: defaults, what is accepted, and what `manage.py check` says of the rest."""

import datetime as dt
import re
from typing import Any

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from pgwerk_django import conf


def test_defaults(settings: Any) -> None:
    del settings.PGWERK
    conf.current.cache_clear()  # a deletion sends no signal
    current = conf.current()
    assert current == conf.Conf()
    assert (current.DATABASE, current.AUTODISCOVER, current.POLL_INTERVAL) == ("default", ("tasks", "schedules"), 1)
    assert (current.BATCH_SIZE, current.MAX_CATCH_UP, current.LEASE) == (1000, 100, 60)
    assert (current.RESULT_TTL, current.FAILURE_TTL) == (7 * 86400, 30 * 86400)
    assert (current.ALLOWED_FUNCTIONS, current.LISTEN, current.NOTIFY) == ((), None, True)


def test_intervals_and_ttls_take_timedelta(settings: Any) -> None:
    minute = dt.timedelta(minutes=1)
    settings.PGWERK = {"POLL_INTERVAL": minute, "LEASE": minute, "RESULT_TTL": minute, "FAILURE_TTL": 0}
    current = conf.current()
    assert (current.POLL_INTERVAL, current.LEASE, current.RESULT_TTL, current.FAILURE_TTL) == (60, 60, 60, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE", ""),
        ("AUTODISCOVER", "tasks"),
        ("AUTODISCOVER", [1]),
        ("AUTODISCOVER", ["shop/tasks.py"]),
        ("AUTODISCOVER", ["-"]),
        ("AUTODISCOVER", ["shop."]),
        ("AUTODISCOVER", [""]),
        ("POLL_INTERVAL", 0),
        ("POLL_INTERVAL", "1"),
        ("POLL_INTERVAL", float("nan")),
        ("BATCH_SIZE", 0),
        ("BATCH_SIZE", True),
        ("MAX_CATCH_UP", 1.5),
        ("LEASE", -1),
        ("RESULT_TTL", -1),
        ("RESULT_TTL", 0.5),
        ("FAILURE_TTL", None),
        ("ALLOWED_FUNCTIONS", "shop.*"),
        ("MASK", "KEY"),
        ("MASK", ["(unclosed"]),
        ("LISTEN", True),
        ("NOTIFY", "yes"),
    ],
)
def test_a_bad_value_is_named(settings: Any, name: str, value: Any) -> None:
    settings.PGWERK = {name: value}
    with pytest.raises(ImproperlyConfigured, match=rf"PGWERK\['{name}'\] must be .*, got {re.escape(repr(value))}"):
        conf.current()
    (problem,) = [message for message in checks.run_checks() if message.id == "pgwerk_django.E001"]
    assert name in problem.msg


def test_an_unknown_setting_is_refused_by_a_check(settings: Any) -> None:
    settings.PGWERK = {"POLL": 1}
    (problem,) = [message for message in checks.run_checks() if message.id == "pgwerk_django.E001"]
    assert "PGWERK['POLL'] is unknown" in problem.msg
    assert "POLL_INTERVAL" in problem.msg


def test_it_must_be_a_dictionary(settings: Any) -> None:
    settings.PGWERK = ["DATABASE"]
    assert conf.problems() == ["PGWERK must be a dictionary, got ['DATABASE']"]
