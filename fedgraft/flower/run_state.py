"""What an operator wants of a deployed run, and how its server process ended: small files in the run directory.

control.json   written by `fedgraft server pause`, `resume` and `stop`; the server looks at it between rounds
ended.json     written by the run's server process: that it runs, and at the end why it ended
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedgraft.core.files import write_text

_RESERVED = 4096
"""Bytes that ended.json takes from the beginning, so that a full disk still has room for the reason."""


class Wanted(StrEnum):
    """What is to become of a run after its present round."""

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"


class Outcome(StrEnum):
    """How a run's server process ended; one that was killed still says that it runs."""

    RUNNING = "running"
    FINISHED = "finished"
    PAUSED = "paused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Ended:
    """The content of ended.json.

    Attributes:
        submission: tells the run's server processes apart.
        round: the last completed round.
        reason: a sentence.
        kind: the class of the exception that ended it.
    """

    outcome: Outcome
    submission: str = ""
    round: int = 0
    reason: str = ""
    kind: str = ""


class RunState:
    """The two files of a run directory."""

    def __init__(self, directory: Path) -> None:
        self._control, self._ended = directory / "control.json", directory / "ended.json"

    @property
    def wanted(self) -> Wanted:
        """What is to become of the run; what cannot be read wants nothing."""
        try:
            return Wanted(_read(self._control).get("wanted", Wanted.GO_ON))
        except ValueError:
            return Wanted.GO_ON

    def want(self, wanted: Wanted) -> None:
        """Say what is to become of the run."""
        write_text(self._control, json.dumps({"wanted": wanted}) + "\n")

    @property
    def ended(self) -> Ended | None:
        """How the newest server process ended, or that it runs; None if none has said anything that can be read."""
        known = _read(self._ended)
        try:
            return Ended(
                Outcome(known["outcome"]),
                str(known["submission"]),
                int(known["round"]),
                str(known["reason"]),
                str(known["kind"]),
            )
        except (KeyError, ValueError, TypeError):
            return None

    def end(self, ended: Ended) -> None:
        """Record how this process ends, or that it runs; on a full disk, in the place that is reserved for it."""
        content = json.dumps(asdict(ended))
        if len(content) >= _RESERVED:
            content = json.dumps(asdict(ended) | {"reason": ended.reason[: _RESERVED // 8]})
        text = content.ljust(_RESERVED - 1) + "\n"
        try:
            write_text(self._ended, text)
        except OSError:
            with suppress(OSError), self._ended.open("r+") as file:
                file.write(text)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
