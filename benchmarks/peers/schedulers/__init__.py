"""Peers as schedulers, each run as its documentation has it.

`python -m benchmarks.peers.schedulers.NAME fill N SECONDS`: N schedules of so many seconds, all due now or spread over the
next SECONDS (where it can). `... run N SECONDS`: its scheduler, until it is stopped; what it declares in code it declares again.
"""
