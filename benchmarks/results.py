"""What a benchmark is given, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

Size = Literal["full", "quick", "tiny"]
Named = TypeVar("Named")


@dataclass(frozen=True)
class Given:
    size: Size = "full"
    peers: Sequence[str] | None = None  # names; None: all that the benchmark has
    peers_python: str | None = None  # None: this one, or a newer one where a peer needs it

    def among(self, known: Mapping[str, Named]) -> dict[str, Named]:
        return {name: one for name, one in known.items() if self.peers is None or name in self.peers}


@dataclass
class Row:
    """One question: our figure, plain SQL's, and the peers' (or why there is none)."""

    what: str
    unit: str
    ours: float
    plain: float | None = None
    peers: dict[str, float | str] = field(default_factory=dict)
    more_is_better: bool = True
    target: str = ""
    met: bool | None = None
    how: str = ""

    def ratio(self, theirs: float) -> float:
        """Above 1 where ours is the better one, whichever way the unit goes."""
        better, worse = (self.ours, theirs) if self.more_is_better else (theirs, self.ours)
        return better / worse if worse else float("inf")

    @property
    def ratios(self) -> dict[str, float]:
        known = {} if self.plain is None else {"plain SQL": self.plain}
        known |= {name: value for name, value in self.peers.items() if not isinstance(value, str)}
        return {name: round(self.ratio(value), 3) for name, value in known.items()}

    def as_json(self) -> dict[str, Any]:
        """The ratios first: the rest is this machine's."""
        fields = asdict(self)
        return {"what": fields.pop("what"), "ratios": self.ratios, **fields}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        return cls(**{name: value for name, value in fields.items() if name != "ratios"})


@dataclass
class Result:
    rows: list[Row]
    details: dict[str, Any] = field(default_factory=dict)


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show(row: Row) -> str:
    parts = [f"{row.what}: {number(row.ours)} {row.unit}"]
    if row.plain is not None:
        parts.append(f"plain SQL {number(row.plain)} ({row.ratio(row.plain):.2f})")
    for name, value in row.peers.items():
        parts.append(
            f"{name} n/a: {value}" if isinstance(value, str) else f"{name} {number(value)} ({row.ratio(value):.1f} ×)"
        )
    if row.target:
        verdict = "" if row.met is None else (": met" if row.met else ": MISSED")
        parts.append(f"target {row.target}{verdict}")
    return "; ".join(parts)
