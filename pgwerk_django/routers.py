"""`DATABASE_ROUTERS = ["pgwerk_django.routers.Router"]`: our tables are on the database that `PGWERK["DATABASE"]` names."""

from typing import Any

from pgwerk_django import conf

APP = "pgwerk_django"


class Router:
    """Has no opinion on models of other apps."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return conf.current().DATABASE if model._meta.app_label == APP else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == conf.current().DATABASE if app_label == APP else None
