"""What the benchmarks and the processes they start run on; DATABASE_URL is set by `benchmarks.database`."""

import os
from importlib.util import find_spec

import environ

DATABASES = {"default": environ.Env().db("DATABASE_URL")}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "pgwerk_django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "example_project.urls"
STATIC_URL = "static/"
ALLOWED_HOSTS = ["*"]
PGWERK = {"AUTODISCOVER": (), "LISTEN": os.environ.get("PGWERK_LISTEN")}
SECRET_KEY = "benchmarks"
USE_TZ = True
TIME_ZONE = "UTC"

if redis_url := os.environ.get("PGWERK_BENCH_REDIS"):  # set by `benchmarks.targets`
    INSTALLED_APPS += ["django_tasks_db", "django_rq", *([] if find_spec("django.tasks") else ["django_tasks"])]
    TASKS = {
        "default": {"BACKEND": "pgwerk_django.backend.PgwerkBackend"},
        "database": {"BACKEND": "django_tasks_db.DatabaseBackend"},
        "rq": {"BACKEND": "django_tasks_rq.RQBackend"},
    }
    RQ_QUEUES = {"default": {"URL": f"{redis_url}/1"}}
