"""Everything this package raises on purpose beyond `ValueError`, `TypeError` and `Schedule.DoesNotExist`."""


class PgwerkError(Exception):
    """The base of our own errors."""


class JobTimeout(PgwerkError):
    """A job ran longer than its `timeout`."""

    def __init__(self, timeout: int) -> None:
        super().__init__(f"timed out after {timeout} s")


class FunctionNotFound(PgwerkError):
    """A dotted path does not lead to something callable."""
