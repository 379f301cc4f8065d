"""The Django admin: what will run, what ran and why not; pause, resume and trigger; schedules made by people.

It owns no rule: every change goes through the same methods as the API and the commands, every value through the same
readers. Nothing else imports this package, so the app works without `django.contrib.admin`.
"""

from pgwerk_django.admin.jobs import JobAdmin
from pgwerk_django.admin.processes import ProcessAdmin
from pgwerk_django.admin.schedules import ScheduleAdmin

__all__ = ["JobAdmin", "ProcessAdmin", "ScheduleAdmin"]
