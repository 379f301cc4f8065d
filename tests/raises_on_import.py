"""A module of jobs that cannot be imported."""

raise RuntimeError("a setting is missing")
