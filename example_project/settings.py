"""The example shop's settings. What pgwerk_django needs is marked (1), (2) and (3): copy those into your own."""

from datetime import timedelta
from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
env.read_env(BASE_DIR / ".env")  # the environment wins over the file

SECRET_KEY = env("SECRET_KEY", default="only-for-the-example")
DEBUG = env.bool("DEBUG", default=True)
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "pgwerk_django",  # (1) the app; the admin apps above are optional
    "example_project.shop",  # an app of yours: its `tasks` and `schedules` modules are imported at start
]

# (2) A PostgreSQL database, the one your site has already. `make demo` starts its own where DATABASE_URL is not set.
DATABASES = {"default": env.db("DATABASE_URL", default="postgres://localhost/pgwerk_demo")}

# (3) Optional: each setting has a default.
PGWERK = {
    "RESULT_TTL": timedelta(days=1),  # how long a finished job stays in the table
    "FAILURE_TTL": timedelta(days=7),  # and a failed one
    "LISTEN": "default",  # wake at once, on a connection of its own; without it, within a second (as behind PgBouncer)
}

# Schedules and jobs become log lines of the logger "pgwerk_django".
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"brief": {"format": "{levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "brief"}},
    "loggers": {
        "pgwerk_django": {"handlers": ["console"], "level": "INFO"},
        "shop": {"handlers": ["console"], "level": "INFO"},
    },
}

USE_TZ = True  # schedules are about instants: pgwerk_django insists
TIME_ZONE = "UTC"

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
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
WSGI_APPLICATION = "example_project.wsgi.application"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
