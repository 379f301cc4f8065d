"""Options of the connections of schedulers and workers, so that they notice a network that has gone dead.

By default PostgreSQL's client waits about 15 minutes for a server whose packets are dropped, and psycopg 130 s for a
connection. These options apply to TCP only; libpq ignores them on Unix sockets.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from django.db import connections
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

LIMITS: Mapping[str, int] = {
    "connect_timeout": 10,  # seconds, for each address of each host
    "keepalives": 1,
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}


def limited(parameters: Mapping[str, Any], limits: Mapping[str, int] = LIMITS) -> dict[str, Any]:
    """Return what psycopg connects with, plus those of `limits` about which the site has said nothing.

    The site speaks in `parameters`, in a connection string among them (`conninfo`), in a service file (`service`,
    `PGSERVICE`) and in the environment (`PGCONNECT_TIMEOUT`). What comes as a keyword overrides all of these, so a plain
    default would win against the site.
    """
    said = {**conninfo_to_dict(parameters.get("conninfo") or ""), **parameters}
    outside = _said_outside(said.get("service"))
    # What is said outside is passed on, since psycopg reads `connect_timeout` from no service file.
    missing = {name: outside.get(name, value) for name, value in limits.items() if name not in said}
    return {**parameters, **missing}


def _said_outside(service: Any) -> dict[str, str]:
    """Return the options that libpq takes from a service file and from the environment.

    libpq reads a service file only to connect. There is no server at this address, so that fails at once.
    """
    nowhere = make_conninfo(host=os.devnull, hostaddr="", service=service)
    attempt = PGconn.connect_start(nowhere.encode())
    try:
        return {option.keyword.decode(): option.val.decode() for option in attempt.info if option.val is not None}
    finally:
        attempt.finish()


@contextlib.contextmanager
def limits_for(using: str, **forced: int) -> Iterator[dict[str, Any]]:
    """Have this thread's connection to `using` made with `limited` options, or with what is `forced`. Yield its OPTIONS.

    Other threads keep what the settings say: a process may have more to do than to run a scheduler. A connection that is
    open already is closed, unless it is in a transaction, or something is forced.
    """
    connection = connections[using]
    before = connection.settings_dict
    options = {**limited(before["OPTIONS"]), **forced}
    connection.settings_dict = {**before, "OPTIONS": options}
    if options != before["OPTIONS"] and not (forced or connection.in_atomic_block):
        connection.close()
    try:
        yield options
    finally:
        connection.settings_dict = before
