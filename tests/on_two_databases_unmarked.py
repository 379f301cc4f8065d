"""The fixture `pgwerk`, with the settings of `tests.two_databases`: no mark need say which databases a test may go to."""

from types import ModuleType

from django.contrib.auth.models import User

from pgwerk_django import schedule
from tests import functions

pytest_plugins = ["pgwerk_django.pytest_plugin"]


def test_the_fixture_lets_a_test_go_to_both(pgwerk: ModuleType) -> None:
    User.objects.create(username="on the default one")
    schedule(functions.add, interval=60, args=[1, 2])
    assert [job.result for job in pgwerk.run_due()] == []
