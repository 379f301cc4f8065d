"""What the benchmarks and the processes they start run on; DATABASE_URL is set by `benchmarks.database`."""

import environ

DATABASES = {"default": environ.Env().db("DATABASE_URL")}
INSTALLED_APPS = ["pgwerk_django"]
PGWERK = {"AUTODISCOVER": ()}
SECRET_KEY = "benchmarks"
USE_TZ = True
TIME_ZONE = "UTC"
