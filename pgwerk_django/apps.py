"""What happens when Django starts: declarations are imported, checks are registered. No table is touched."""

from importlib import import_module

from django.apps import AppConfig, apps
from django.utils.module_loading import module_has_submodule
from django.utils.translation import gettext_lazy as _


class PgwerkConfig(AppConfig):
    name = "pgwerk_django"
    verbose_name = _("Scheduler")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from pgwerk_django import checks, conf  # noqa: F401  # importing the checks registers them

        # With settings that cannot be read, `manage.py check` (and each of our commands) says what is wrong with them.
        if not conf.problems():
            self._autodiscover(conf.current().AUTODISCOVER)
            if conf.current().CELERY_RESULTS:
                from pgwerk_django.targets import celery

                celery.listen_for_results()
            if conf.current().TELEMETRY:
                from pgwerk_django import telemetry

                telemetry.instrument()

    def _autodiscover(self, names: tuple[str, ...]) -> None:
        """Import what `AUTODISCOVER` names. A module that is there and fails to import fails loudly.

        `"tasks"` is that module of each installed app but our own, `"shop.tasks"` that module, `"-shop"` no module of that app,
        `"-shop.tasks"` not that one.
        """
        excluded = {name.removeprefix("-") for name in names if name.startswith("-")}
        found = [name for name in names if "." in name and not name.startswith("-")]
        for app in apps.get_app_configs():
            if app is not self and not {app.name, app.label} & excluded:
                own = [name for name in names if name.isidentifier() and module_has_submodule(app.module, name)]
                found += [f"{app.name}.{name}" for name in own]
        for module in dict.fromkeys(found):
            if module not in excluded:
                self._import(module)

    def _import(self, module: str) -> None:
        try:
            import_module(module)
        except Exception as error:
            error.add_note(
                f"pgwerk_django imports {module} when Django starts, as PGWERK['AUTODISCOVER'] says (by default the modules tasks"
                f" and schedules of each installed app). To leave it out, add '-{module}' to that setting."
            )
            raise
