"""Everything this package raises on purpose beyond `ValueError`, `TypeError` and `Schedule.DoesNotExist`."""


class PgwerkError(Exception):
    """The base of our own errors."""


class JobTimeout(PgwerkError):
    """A job ran longer than its `timeout`."""

    def __init__(self, timeout: int) -> None:
        super().__init__(f"timed out after {timeout} s")


class JobCancelled(PgwerkError):
    """A job was stopped because somebody cancelled it. Its function may raise this itself, once `cancelled` is true."""

    def __init__(self, message: str = "cancelled while it ran") -> None:
        super().__init__(message)


class ProcessDied(PgwerkError):
    """The process that ran a job ended under it."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the process that ran it died: {how}")


class TransactionLeftOpen(PgwerkError):
    """A job returned with a transaction open, which was rolled back."""

    def __init__(self, aliases: list[str]) -> None:
        super().__init__(f"it left a transaction open, which was rolled back, on: {', '.join(map(repr, aliases))}")


class FunctionNotFound(PgwerkError):
    """A dotted path does not lead to something callable."""
