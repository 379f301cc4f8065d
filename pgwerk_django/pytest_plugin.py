"""The fixture `pgwerk`. Put `pytest_plugins = ["pgwerk_django.pytest_plugin"]` into your `conftest.py`; needs pytest-django.

No entry point brings it in: pytest would import it, and with it Django, in each run, whoever the tests are of.
"""

from collections.abc import Iterator
from types import ModuleType

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """pytest-django lets a test near the default database alone, unless it says more: who asks for the fixture means ours."""
    if "pgwerk" in getattr(item, "fixturenames", ()) and item.get_closest_marker("django_db") is None:
        from django.db import DEFAULT_DB_ALIAS

        from pgwerk_django import conf

        item.add_marker(pytest.mark.django_db(databases=sorted({DEFAULT_DB_ALIAS, conf.current().DATABASE})))


@pytest.fixture
def pgwerk(db: None) -> Iterator[ModuleType]:
    """`pgwerk_django.test` and the database; what a test declares or takes back is so until its end."""
    from pgwerk_django import test
    from pgwerk_django.registry import registry

    with test.isolated_registry(*(definition.name for definition in registry)):
        yield test
