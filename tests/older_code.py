"""Functions as a worker of older code has them: some are wrapped, some fail by themselves."""

import functools
from collections.abc import Callable
from typing import Any

from django.db import transaction


@transaction.atomic
def in_a_transaction(a: int) -> int:
    return a


def passing_a_name(func: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that passes one argument more than it gets."""

    @functools.wraps(func)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return func("ada", *args, **kwargs)

    return inner


@passing_a_name
def named(name: str, a: int) -> str:
    return f"{name} {a}"


@passing_a_name
def named_fails(name: str, a: int) -> None:
    raise TypeError(f"named_fails() is out of {name}s")


def one(a: int) -> int:
    return a


def calls_another_wrongly(a: int) -> int:
    return one(a, b=2)  # type: ignore[call-arg]


@transaction.atomic
def calls_itself_wrongly(a: int, deep: bool = False) -> int:
    return calls_itself_wrongly(a, b=2)  # type: ignore[call-arg,no-any-return]


class Callable_:
    def __call__(self, a: int) -> int:
        return a


instance = Callable_()
constant = 42
