"""Settings of the test suite: `DATABASE_URL`, else an embedded PostgreSQL of this run's own."""

import atexit
import os
import shutil
import socket
import sys
import tempfile
from importlib.util import find_spec

import django
import environ

from example_project.embedded import EmbeddedPostgres

if not os.environ.get("DATABASE_URL"):
    folder = tempfile.mkdtemp(prefix="pgwerk-tests-")
    server = EmbeddedPostgres(folder, options={"max_connections": 200, "fsync": "off"})
    server.start()
    os.environ["DATABASE_URL"] = server.url  # the processes that tests start find it there
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)

if "PGWERK_TEST_REDIS_PORT" not in os.environ:
    # Nothing listens there until the fixture `redis` starts a server; the processes that tests start know the port, too.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        os.environ["PGWERK_TEST_REDIS_PORT"] = str(taken.getsockname()[1])
REDIS_URL = f"redis://127.0.0.1:{os.environ['PGWERK_TEST_REDIS_PORT']}"

# To import RQ takes half a second: of the processes that tests start, only those that need it do.
WITH_RQ = "pytest" in sys.modules or "PGWERK_TEST_RQ" in os.environ

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
    "django_tasks_db",
    *(["django_rq"] if WITH_RQ else []),
    *([] if find_spec("django.tasks") else ["django_tasks"]),  # Django 6 has it built in
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
IMMEDIATE = f"{'django.tasks' if find_spec('django.tasks') else 'django_tasks'}.backends.immediate.ImmediateBackend"
TASKS = {
    "default": {"BACKEND": IMMEDIATE, "QUEUES": []},
    "dummy": {"BACKEND": IMMEDIATE.replace("immediate.Immediate", "dummy.Dummy"), "QUEUES": []},
    "database": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": []},
    "pgwerk": {"BACKEND": "pgwerk_django.backend.PgwerkBackend", "QUEUES": []},
    "patient": {
        "BACKEND": "pgwerk_django.backend.PgwerkBackend",
        "QUEUES": ["default", "slow"],
        "OPTIONS": {"MAX_ATTEMPTS": 3, "BACKOFF": 0, "TIMEOUT": 60, "RESULT_TTL": 10, "FAILURE_TTL": 20},
    },
    **({"rq": {"BACKEND": "django_tasks_rq.RQBackend", "QUEUES": ["default", "other"]}} if WITH_RQ else {}),
}
RQ_QUEUES = {queue: {"URL": f"{REDIS_URL}/1"} for queue in ("default", "other")}
PGWERK = {
    "AUTODISCOVER": (),
    "LEASE": float(os.environ.get("PGWERK_LEASE", "60")),
    # For the processes that tests start.
    "POLL_INTERVAL": float(os.environ.get("PGWERK_POLL", "1")),
    "ORPHAN_GRACE": float(os.environ.get("PGWERK_ORPHAN_GRACE", "300")),
    "LISTEN": os.environ.get("PGWERK_LISTEN"),
    "CELERY_RESULTS": "PGWERK_TEST_RESULTS" in os.environ,
    "MAIL_ADMINS": "PGWERK_TEST_MAILS" in os.environ or "PGWERK_TEST_SMTP" in os.environ,
    "AROUND_JOB": os.environ.get("PGWERK_TEST_AROUND"),
    "WERK": os.environ.get("PGWERK_TEST_WERK"),
}

ADMINS = ["ada@example.org"] if django.VERSION >= (6, 0) else [("Ada", "ada@example.org")]
# What tests read of the mails that their processes send: a folder, or a port of their own.
MAILS, SMTP_PORT = os.environ.get("PGWERK_TEST_MAILS", ""), os.environ.get("PGWERK_TEST_SMTP", "")
MAILER = f"django.core.mail.backends.{'smtp' if SMTP_PORT else 'filebased' if MAILS else 'dummy'}.EmailBackend"
if django.VERSION >= (6, 1):
    options = {"host": "127.0.0.1", "port": int(SMTP_PORT)} if SMTP_PORT else {"file_path": MAILS} if MAILS else {}
    MAILERS = {"default": {"BACKEND": MAILER, "OPTIONS": options}}
else:
    EMAIL_BACKEND = MAILER
if MAILS and django.VERSION < (6, 1):
    EMAIL_FILE_PATH = MAILS
if SMTP_PORT and django.VERSION < (6, 1):
    EMAIL_HOST, EMAIL_PORT = "127.0.0.1", int(SMTP_PORT)
