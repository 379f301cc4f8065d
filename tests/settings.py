"""Settings of the test suite: `DATABASE_URL`, else an embedded PostgreSQL of this run's own."""

import atexit
import os
import shutil
import tempfile

import environ

from example_project.embedded import EmbeddedPostgres

if not os.environ.get("DATABASE_URL"):
    folder = tempfile.mkdtemp(prefix="pgwerk-tests-")
    server = EmbeddedPostgres(folder, options={"max_connections": 200, "fsync": "off"})
    server.start()
    os.environ["DATABASE_URL"] = server.url  # the processes that tests start find it there
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)

DATABASES = {"default": environ.Env().db("DATABASE_URL")}
DATABASES["default"]["TEST"] = {"NAME": f"test_pgwerk_{os.getpid()}"}  # two runs at once do not collide
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
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
SECRET_KEY = "tests"
USE_TZ = True
TIME_ZONE = "Europe/Paris"
ALLOWED_HOSTS = ["*"]
PGWERK = {
    "AUTODISCOVER": (),
    # For the processes that tests start.
    "POLL_INTERVAL": float(os.environ.get("PGWERK_POLL", "1")),
    "LISTEN": os.environ.get("PGWERK_LISTEN"),
}
