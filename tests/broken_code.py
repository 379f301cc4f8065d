"""A module whose import fails: no other code would help."""

import tests.no_such_module  # type: ignore[import-not-found]  # noqa: F401


def func() -> None: ...
