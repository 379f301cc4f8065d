"""Settings of a site whose default database is SQLite: what goes astray there fails. Ours is the alias `jobs`.

Where it has no router of ours, the default database is another PostgreSQL.
"""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, PGWERK

DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("PGWERK_TEST_SQLITE", ":memory:")},
    "jobs": DATABASES["default"],
}
DATABASE_ROUTERS = ["pgwerk_django.routers.Router"]
if "PGWERK_TEST_NO_ROUTER" in os.environ:
    DATABASE_ROUTERS.clear()
    DATABASES["default"] = {**DATABASES["jobs"], "TEST": {"NAME": f"test_pgwerk_{os.getpid()}_default"}}
PGWERK = {**PGWERK, "DATABASE": "jobs", "LISTEN": "jobs", "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
