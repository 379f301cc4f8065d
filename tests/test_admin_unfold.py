"""With Unfold installed, which brings templates and an admin site of its own, each page still works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import django
django.setup()
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
from django.test.runner import DiscoverRunner

setup_test_environment()
runner = DiscoverRunner(verbosity=0, interactive=False)
databases = runner.setup_databases()
try:
    from pgwerk_django.models import Job, Process, Queue, Schedule, Status
    from django.contrib import admin
    assert type(admin.site).__module__.startswith("unfold"), type(admin.site)
    anna = Client()
    anna.force_login(User.objects.create_superuser("anna"))
    row = Schedule.objects.create(name="hourly", function="tests.functions.add", interval=3600, origin="admin")
    job = Job.objects.create(schedule_name="hourly", key="hourly@2026-01-01T09:00:00.000000Z", status=Status.FAILED,
        due_at="2026-01-01T09:00:00Z", kind="scheduled", schedule=row)
    Process.objects.create(role="scheduler", host="a")
    queue = Queue.objects.create(name="mail")
    base = "/admin/pgwerk_django"
    for url, told in {
        "/admin/": f"{base}/overview/",
        f"{base}/overview/": "What ran and what will",
        f"{base}/overview/?span=7d": "Live schedulers",
        f"{base}/schedule/": "pgwerk-strip",
        f"{base}/schedule/{row.pk}/change/": "Why didn",
        f"{base}/schedule/add/": "pgwerk-preview",
        f"{base}/schedule/{row.pk}/delete/": "hourly",
        f"{base}/job/": "hourly",
        f"{base}/job/{job.pk}/change/": 'value="retry"',
        f"{base}/process/": "Alive",
        f"{base}/queue/": "mail",
        f"{base}/queue/{queue.pk}/change/": 'value="pause"',
    }.items():
        response = anna.get(url)
        assert response.status_code == 200, (url, response.status_code)
        assert told in response.content.decode(), (url, told)
    asked = anna.post(f"{base}/schedule/", {"action": "pause", "_selected_action": row.pk})
    assert b"will not run until" in asked.content
    anna.post(f"{base}/schedule/", {"action": "pause", "_selected_action": row.pk, "post": "yes", "reason": "why not"})
    assert Schedule.objects.get().pause_reason == "why not"
    assert LogEntry.objects.get().change_message == "Paused: why not"
finally:
    runner.teardown_databases(databases)
"""


@pytest.mark.process
def test_with_unfold_installed() -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.unfold_settings"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
