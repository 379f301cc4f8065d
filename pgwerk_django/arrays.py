"""PostgreSQL arrays as text: psycopg takes three times as long to write a list, as it does so in Python."""

from collections.abc import Sequence

_UNUSUAL = object()


def array(values: Sequence[object], *, usual: object = _UNUSUAL) -> str:
    """The parameter for `%s::type[]`. Empty when it would hold nothing but the `usual` value, which the statement puts back."""
    if all(value == usual for value in values):
        return "{}"
    # A number, a boolean, an instant, a UUID: nothing in them needs quotes. (In one loop: a call for each takes as long again.)
    elements = [
        "NULL" if value is None else _quoted(value) if isinstance(value, str) else str(value) for value in values
    ]
    return "{" + ",".join(elements) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
