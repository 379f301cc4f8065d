"""Settings of the process that writes the rows of the real django-celery-beat, into the test database."""

import environ

DATABASES = {"default": environ.Env().db("DATABASE_URL")}
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "pgwerk_django"]
USE_TZ = True
TIME_ZONE = "Europe/Paris"
SECRET_KEY = "tests"
PGWERK = {"AUTODISCOVER": ()}
