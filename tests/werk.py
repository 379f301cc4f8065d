"""pgwerk's side: the project's `Werk`, and a worker of pgwerk's own, as a program."""

import asyncio
import os

import django
from django.apps import apps
from pgwerk import AsyncWorker, Werk

if not apps.ready:  # in the program
    django.setup()

from tests import functions

app = Werk(os.environ["DATABASE_URL"].replace("postgres://", "postgresql://"))
app.register_before_enqueue(functions.die_if_told)  # which it calls after the insert

if __name__ == "__main__":
    asyncio.run(AsyncWorker(app=app, queues=["default", "other"]).run())
