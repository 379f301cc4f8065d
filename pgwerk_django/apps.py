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

    def _autodiscover(self, modules: tuple[str, ...]) -> None:
        """Import these modules of each installed app but our own. One that is there and fails to import fails loudly."""
        for app in apps.get_app_configs():
            for module in modules:
                if app is not self and module_has_submodule(app.module, module):
                    import_module(f"{app.name}.{module}")
