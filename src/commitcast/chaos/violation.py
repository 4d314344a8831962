"""A violation: one breach of a guarantee, as the checkers name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Guarantee = Literal["G1", "G2", "G3", "G4", "G5", "G6", "G7"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One breach of a guarantee of DESIGN §1; `who` is a reader, a sink, the log or the rows."""

    guarantee: Guarantee
    breach: str
    stream: str
    who: str
    detail: str

    def __str__(self) -> str:
        return f"{self.guarantee} {self.breach}: {self.who}, {self.stream}: {self.detail}"
