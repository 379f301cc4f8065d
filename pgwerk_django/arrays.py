"""PostgreSQL arrays as text: psycopg takes three times as long to write a list, as it does so in Python."""

from collections.abc import Sequence

_UNUSUAL = object()


def array(values: Sequence[object], *, usual: object = _UNUSUAL) -> str:
    """The parameter for `%s::type[]`. Empty when it would hold nothing but the `usual` value, which the statement puts back."""
    if all(value == usual for value in values):
        return "{}"
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)  # a number, a boolean, an instant, a UUID: nothing in them needs quotes
