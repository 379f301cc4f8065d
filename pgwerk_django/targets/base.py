"""The seam: what a target is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar


class Target(ABC):
    """One kind of engine that runs jobs."""

    name: ClassVar[str]

    @abstractmethod
    def problems(self, function: str) -> Iterator[str]:
        """A sentence for each reason why the function at this dotted path cannot run here."""
