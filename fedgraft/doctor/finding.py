"""One thing that was looked at, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "note", "fails"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        area: the heading under which it is shown.
        state: "fine"; "note" for what is missing or slow and harms nothing that works without it; "fails" for what
            will stop a command.
        fix: what would make it fine; empty where there is nothing to do.
    """

    area: str
    name: str
    state: State
    text: str
    fix: str = ""
