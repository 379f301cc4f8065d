"""A recurrence in words."""

from types import SimpleNamespace

import pytest
from django.utils import translation

from pgwerk_django.admin.words import recurrence_in_words

CRON = {
    "0 9 * * mon-fri": "At 09:00 on weekdays",
    "@daily": "At 00:00 every day",
    "@hourly": "Every hour",
    "@yearly": "At 00:00 on day 1 of the month in January",
    "* * * * *": "Every minute",
    "*/5 * * * *": "Every 5 minutes",
    "0,30 * * * *": "Every 30 minutes",
    "3-59/5 * * * *": "Every 5 minutes from minute 3 of the hour",
    "*/7 * * * *": "Every hour at minutes 0, 7, 14, … 56",  # 56 to 0 is no 7
    "17 * * * *": "Every hour at minute 17",
    "0 */4 * * *": "Every 4 hours",
    "10 */2 * * *": "Every 2 hours from 00:10",
    "0 8,20 * * *": "At 08:00 and 20:00 every day",
    "0 9-9 * * *": "At 09:00 every day",
    "30 9-17 * * 1-5": "Every hour from 09:30 to 17:30 on weekdays",
    "*/10 8-18 * * *": "Every 10 minutes from 08:00 to 18:50",
    "* 2 * * *": "Every minute from 02:00 to 02:59",
    "1,2 1-5,8 * * *": "At minutes 1 and 2 past the hours 01 to 05 and 08 every day",
    "0 0 * * 7": "At 00:00 on Sunday",
    "0 0 * * sat-sun": "At 00:00 on weekends",
    "0 0 1,15 * *": "At 00:00 on days 1 and 15 of the month",
    "0 3 */2 * *": "At 03:00 on days 1, 3, 5, … 31 of the month",
    "30 2 29 2 *": "At 02:30 on day 29 of the month in February",
    "0 0 * 1-3,7 *": "At 00:00 every day in January to March and July",
    # Both restricted: either, or both where one begins with a star.
    "0 9 1-7 * mon": "At 09:00 on days 1 to 7 of the month or on Monday",
    "0 9 */2 * mon": "At 09:00 on Monday, but only on days 1, 3, 5, … 31 of the month",
    "0 9 1-31 * mon": "At 09:00 every day",
    "nonsense": "",
    "61 * * * *": "",
}


@pytest.mark.parametrize(("expression", "words"), CRON.items())
def test_cron_in_words(expression: str, words: str) -> None:
    assert recurrence_in_words(SimpleNamespace(cron=expression, interval=None)) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "Once"), (1, "Every second"), (60, "Every minute"), (90, "Every 90 seconds"), (300, "Every 5 minutes"),
        (3600, "Every hour"), (7200, "Every 2 hours"), (86400, "Every day"), (604800, "Every 7 days"),
    ],
)  # fmt: skip
def test_intervals_in_words(seconds: int | None, words: str) -> None:
    assert recurrence_in_words(SimpleNamespace(cron="", interval=seconds)) == words


def test_words_are_in_the_language_of_the_reader() -> None:
    row = SimpleNamespace(cron="0 9 * * mon", interval=None)
    assert recurrence_in_words(row) == "At 09:00 on Monday"
    with translation.override("es"):  # the names of days are Django's
        assert "lunes" in recurrence_in_words(row).lower()
