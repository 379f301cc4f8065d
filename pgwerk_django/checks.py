"""`manage.py check`: what would fail at 03:00, said at deploy time."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands
from django.db import DEFAULT_DB_ALIAS, connections, router, transaction
from django.utils.connection import ConnectionDoesNotExist

from pgwerk_django import conf, schema, targets
from pgwerk_django.exceptions import TargetUnavailable, text_of
from pgwerk_django.execution import around_job
from pgwerk_django.models import Schedule
from pgwerk_django.registry import registry
from pgwerk_django.targets.pgwerk import werk

COMMANDS = ("queues", "runscheduler", "runworker", "schedules", "syncschedules")


@checks.register("pgwerk")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Each entry of `PGWERK` is known and can be used."""
    return [checks.Error(problem, id="pgwerk_django.E001") for problem in conf.problems()]


@checks.register("pgwerk")
def check_admins(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Where alerts are to be mailed, somebody gets them."""
    if conf.problems() or not conf.current().MAIL_ADMINS or settings.ADMINS:
        return []
    return [
        checks.Warning(
            "PGWERK['MAIL_ADMINS'] is True, and ADMINS is empty: nobody is told",
            hint="Name in ADMINS who is to get the mails.",
            id="pgwerk_django.W003",
        )
    ]


@checks.register("pgwerk")
def check_around_job(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """`PGWERK["AROUND_JOB"]` leads to something that can be called."""
    path = None if conf.problems() else conf.current().AROUND_JOB
    try:
        if path is not None:
            around_job(path)
    except ImproperlyConfigured as error:
        return [checks.Error(text_of(error), id="pgwerk_django.E013")]
    return []


@checks.register("pgwerk")
def check_tenants(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """With django-tenants (or django-tenant-schemas), our tables stand in the shared schema alone, where the worker reads."""
    ours = {"pgwerk_django", "pgwerk_django.apps.PgwerkConfig"}
    if ours.isdisjoint(getattr(settings, "TENANT_APPS", ())):
        return []
    return [
        checks.Warning(
            "pgwerk_django is in TENANT_APPS: a job that is enqueued in a tenant's schema stays there, and no worker reads it",
            hint="List 'pgwerk_django' in SHARED_APPS only, and keep the tenant in the job's arguments or meta.",
            id="pgwerk_django.W006",
        )
    ]


@checks.register("pgwerk")
def check_time_zone_support(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """`USE_TZ` is on: a due time is an instant."""
    if settings.USE_TZ:
        return []
    return [
        checks.Error(
            "pgwerk_django needs USE_TZ = True: a due time is an instant, and a naive time may be none or two, got False",
            id="pgwerk_django.E002",
        )
    ]


@checks.register("pgwerk")
def check_engine(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """`PGWERK["DATABASE"]` is an alias in `DATABASES`, and its engine is PostgreSQL's. Connects to nothing."""
    alias = _alias()
    if alias is None:
        return []
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist:
        return [
            checks.Error(
                f"PGWERK['DATABASE'] must be one of the aliases in DATABASES ({', '.join(connections)}), got {alias!r}",
                id="pgwerk_django.E003",
            )
        ]
    except ImproperlyConfigured as error:
        return [checks.Error(f"database {alias!r} cannot be used: {text_of(error)}", id="pgwerk_django.E003")]
    if connection.vendor != "postgresql":
        return [
            checks.Error(
                f"pgwerk_django needs PostgreSQL: the engine of database {alias!r} must be"
                f" 'django.db.backends.postgresql', got {connection.settings_dict['ENGINE']!r}",
                id="pgwerk_django.E004",
            )
        ]
    return []


@checks.register("pgwerk")
def check_routers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """`migrate` makes our tables on our database, and models find them there. Connects to nothing."""
    alias = _alias()
    if alias is None or alias not in connections:
        return []
    hint = "Put 'pgwerk_django.routers.Router' first in DATABASE_ROUTERS."
    if not router.allow_migrate_model(alias, Schedule):
        refused = f"PGWERK['DATABASE'] is {alias!r}, where DATABASE_ROUTERS let no tables of pgwerk_django be made"
        return [checks.Error(refused, hint=hint, id="pgwerk_django.E012")]
    elsewhere = [each for each in connections if each != alias and _would_have_our_tables(each)]
    found: list[checks.CheckMessage] = []
    for each in elsewhere:
        vendor = connections[each].vendor
        if each == DEFAULT_DB_ALIAS or vendor != "postgresql":
            problem = f"PGWERK['DATABASE'] is {alias!r}, but the tables of pgwerk_django would be made on {each!r}, too"
            # To migrate the default database is what everybody does.
            if each == DEFAULT_DB_ALIAS and vendor != "postgresql":
                found.append(checks.Error(f"{problem}, and cannot be: {vendor}", hint=hint, id="pgwerk_django.E012"))
            else:
                found.append(checks.Warning(problem, hint=hint, id="pgwerk_django.W002"))
    if not found and (other := router.db_for_write(Schedule)) != alias:
        problem = f"PGWERK['DATABASE'] is {alias!r}, but DATABASE_ROUTERS lead models of pgwerk_django to {other!r}"
        found.append(checks.Warning(problem, hint=hint, id="pgwerk_django.W002"))
    return found


def _would_have_our_tables(alias: str) -> bool:
    # A project may have no default database.
    return connections[alias].vendor != "unknown" and router.allow_migrate_model(alias, Schedule)


@checks.register("pgwerk")
def check_listen(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """What `PGWERK["LISTEN"]` names can be connected to, as far as can be told without connecting."""
    address = None if _alias() is None else conf.current().LISTEN
    if address is None or "://" in address or address in connections:
        return []
    return [
        checks.Error(
            f"PGWERK['LISTEN'] must be the URL of a direct connection or one of the aliases in DATABASES"
            f" ({', '.join(connections)}), got {address!r}",
            id="pgwerk_django.E008",
        )
    ]


@checks.register("pgwerk")
def check_werk(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """What `PGWERK["WERK"]` names is a `Werk`, and its tables are not ours."""
    if _alias() is None or conf.current().WERK is None:
        return []
    try:
        werk()
    except TargetUnavailable as error:
        return [checks.Error(text_of(error), id="pgwerk_django.E009")]
    return []


@checks.register("pgwerk")
def check_isolation(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """SKIP LOCKED and the statement clock are only right in READ COMMITTED, PostgreSQL's default."""
    alias = _alias()
    if alias is None or alias not in connections or connections[alias].vendor != "postgresql":
        return []
    level = connections[alias].settings_dict.get("OPTIONS", {}).get("isolation_level")
    if level is None or getattr(level, "name", level) in ("READ_COMMITTED", 2):
        return []
    return [
        checks.Error(
            f"database {alias!r} must use the isolation level READ COMMITTED, got {level!r} in its OPTIONS",
            id="pgwerk_django.E005",
        )
    ]


@checks.register("pgwerk")
def check_functions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Each schedule that code declares can be run by its target as it asks."""
    return [
        checks.Error(f"schedule {name!r}: {problem}", id="pgwerk_django.E006") for name, problem in _function_problems()
    ]


@checks.register("pgwerk")
def check_commands(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Of two apps with a command of one name (Channels has a `runworker` too) the one listed first has it."""
    found = get_commands()
    return [
        checks.Warning(
            f"'manage.py {name}' is that of {found[name]}, not ours",
            hint=f"List 'pgwerk_django' before '{found[name]}' in INSTALLED_APPS, if ours is what you run.",
            id="pgwerk_django.W001",
        )
        for name in COMMANDS
        if found.get(name) != "pgwerk_django"
    ]


@checks.register(checks.Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """What only the server can say: its version and its default isolation level (with `check --database`)."""
    alias = _alias()
    if alias is None or alias not in (databases or ()) or connections[alias].vendor != "postgresql":
        return []
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int, current_setting('transaction_isolation')")
        version, isolation = cursor.fetchone()
    found: list[checks.CheckMessage] = []
    if version < 140000:
        found.append(
            checks.Error(f"pgwerk_django needs PostgreSQL 14 or later, got {version // 10000}", id="pgwerk_django.E007")
        )
    if isolation != "read committed":
        found.append(
            checks.Error(
                f"database {alias!r} must have default_transaction_isolation 'read committed', got {isolation!r}",
                id="pgwerk_django.E005",
            )
        )
    return found


@checks.register(checks.Tags.database)
def check_tables(
    app_configs: Sequence[AppConfig] | None, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """The tables are those of this version, and functions of stored schedules exist (with `check --database`)."""
    alias = _alias()
    if alias is None or alias not in (databases or ()) or connections[alias].vendor != "postgresql":
        return []
    # Warnings: `migrate` runs these checks first, and an error would keep it from what helps.
    if wrong := schema.problem(alias):
        if wrong == schema.NOT_MADE:
            return []  # nobody is told to migrate by the first `migrate`
        return [checks.Warning(wrong, id="pgwerk_django.W004")]
    rows = Schedule.objects.using(alias).filter(target="worker", paused=False).exclude(next_run_at=None)
    names = rows.exclude(name__in=[definition.name for definition in registry]).values_list("name", "function")
    with transaction.atomic(using=alias):
        return [
            checks.Warning(
                f"schedule {name!r}: {missing}",
                hint="Correct its function, delete it, or (if code declared it) run 'manage.py syncschedules'.",
                id="pgwerk_django.W005",
            )
            for name, function in names.order_by("name").iterator()
            if (missing := targets.missing_here(function))
        ]


def _alias() -> str | None:
    """The configured database; None where the settings cannot be read, which is `check_settings`' to say."""
    try:
        return conf.current().DATABASE
    except ImproperlyConfigured:
        return None


def _function_problems() -> Iterable[tuple[str, str]]:
    for declared in registry:
        try:
            definition = targets.resolved(declared)
            target = targets.get(definition.target)
        except (ValueError, ImproperlyConfigured) as error:
            yield declared.name, text_of(error)
            continue
        for problem in target.problems(definition):
            yield definition.name, problem
