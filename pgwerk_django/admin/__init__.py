"""The Django admin: what will run, what ran and why not; pause, resume and trigger; schedules made by people.

It owns no rule: every change goes through the same methods as the API and the commands, every value through the same
readers. Nothing else imports this package, so the app works without `django.contrib.admin`.
"""

from django.contrib.admin import AdminSite

from pgwerk_django.admin.jobs import JobAdmin
from pgwerk_django.admin.overview import Overview, OverviewAdmin
from pgwerk_django.admin.processes import ProcessAdmin
from pgwerk_django.admin.queues import QueueAdmin
from pgwerk_django.admin.schedules import ScheduleAdmin
from pgwerk_django.models import Job, Process, Queue, Schedule

__all__ = ["JobAdmin", "OverviewAdmin", "ProcessAdmin", "QueueAdmin", "ScheduleAdmin", "register"]


def register(site: AdminSite) -> None:
    """Show all of it on an admin site of your own, beside the stock one, which has it already."""
    site.register(Overview, OverviewAdmin)
    site.register(Schedule, ScheduleAdmin)
    site.register(Job, JobAdmin)
    site.register(Queue, QueueAdmin)
    site.register(Process, ProcessAdmin)
