"""Faults against real processes, and an auditor that says afterwards what became of every due time.

`python -m tests.chaos --help` (or `make chaos`); docs/chaos.md says what is attacked and what was seen.
"""
