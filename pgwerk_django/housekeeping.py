"""What nobody else would tidy up: expired jobs, rows of dead processes, jobs whose worker vanished, queues nobody named."""

import datetime as dt

from pgwerk_django import signals
from pgwerk_django.claims import recover_lost
from pgwerk_django.models import Alert, Job, Process, Queue

HOUSEKEEPING = dt.timedelta(minutes=1)
EXPIRED_BATCH = 1000
NOT_STARTED_BATCH = 1000


def keep_house(*, using: str) -> int:
    """Delete what has expired (one batch) and who is dead, find jobs whose worker vanished. How many jobs expired."""
    jobs = Job.objects.using(using).delete_expired(EXPIRED_BATCH)
    processes = Process.objects.using(using).delete_dead()
    recover_lost(using=using)
    Job.objects.using(using).skip_not_started(NOT_STARTED_BATCH)
    Queue.objects.using(using).discover()
    Alert.objects.using(using).delete_old()
    if jobs or processes:
        signals.send(signals.housekept, using=using, jobs=jobs, processes=processes)
    return jobs
