"""Settings of the processes under attack: nothing but our app, short leases, and the database that the environment names."""

import json
import os

import environ

DATABASES = {"default": environ.Env().db("DATABASE_URL")}
INSTALLED_APPS = ["pgwerk_django"]
SECRET_KEY = "chaos"
USE_TZ = True
TIME_ZONE = "Europe/Paris"
PGWERK = {
    "AUTODISCOVER": (),
    "LEASE": float(os.environ.get("CHAOS_LEASE", "4")),
    "POLL_INTERVAL": 0.5,
    "ORPHAN_GRACE": 10,  # the shortest
    **json.loads(os.environ.get("CHAOS_PGWERK", "{}")),
}
