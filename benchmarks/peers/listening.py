"""The benchmarks' settings, with LISTEN on: a worker that hears of new jobs."""

from benchmarks import settings

DATABASES = settings.DATABASES
INSTALLED_APPS = settings.INSTALLED_APPS
PGWERK = {**settings.PGWERK, "LISTEN": "default"}
SECRET_KEY = settings.SECRET_KEY
USE_TZ = settings.USE_TZ
TIME_ZONE = settings.TIME_ZONE
