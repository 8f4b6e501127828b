"""The run directory: configuration, metrics row by row, checkpoints, summary. Whatever is there is whole."""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from safetensors import safe_open
from safetensors.numpy import save

from fedgraft.config import RunConfig, read_toml
from fedgraft.errors import UserError
from fedgraft.files import stored_key, write_bytes, write_text
from fedgraft.messages import Arrays
from fedgraft.strategies.parts import State

Row = dict[str, Any]
_KEEP_EVERY = 10
_POLL_SECONDS = 0.2
_STATE = "strategy state/"
"""Before the names of what the strategy remembers, beside the shared parameters in one file."""


@dataclass(frozen=True)
class Checkpoint:
    """The shared parameters after a round, with the rows that report its training and what the strategy remembers."""

    fold: int
    round: int
    arrays: Arrays
    rows: list[Row]
    state: State = field(default_factory=dict)


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    # --- configuration ----------------------------------------------------------------------------

    def check_free(self, config: RunConfig, resume: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            UserError: it holds another run, or one that is to be resumed with another configuration.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out takes a directory.")
        saved = self.path / "config.toml"
        if not saved.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"The directory {self.path} is not empty and holds no run; give another --out.")
            if resume:
                raise UserError(f"There is no run to resume in {self.path}.")
            return
        if not resume:
            raise UserError(
                f"The directory {self.path} holds a run; add --resume to go on with it or give another --out."
            )
        known, given = {**RunConfig().model_dump(), **read_toml(saved)}, config.model_dump()
        different = [key for key in given if known[key] != given[key]]
        if different:
            key = different[0]
            raise UserError(
                f"The run in {self.path} has {key} = {known[key]!r}, not {given[key]!r}; "
                "resume it with its own configuration."
            )

    def create(self, config: RunConfig) -> None:
        """Write the complete configuration."""
        write_text(self.path / "config.toml", config.to_toml())

    def lock(self, seconds: float = 0.0) -> None:
        """Keep the directory for this process until `unlock` or its end.

        Args:
            seconds: how long another process may take to leave it.

        Raises:
            UserError: another process is at work on the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / ".lock").open("w")
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    file.close()
                    raise UserError(
                        f"Another process is at work on the run in {self.path}; wait for it or stop it."
                    ) from error
            time.sleep(_POLL_SECONDS)
        self._lock = file

    def unlock(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_locked(self) -> bool:
        """Whether a process is at work on the run."""
        if not (self.path / ".lock").exists():
            return False
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def newest_round(self) -> int:
        """The last completed round of the last fold that has one, 0 where there is none."""
        complete = (self.path / "checkpoints").glob("fold-*.safetensors")
        return max((int(path.stem.rsplit("-", 1)[1]) for path in complete), default=0)

    def begin_attempt(self) -> tuple[str, int]:
        """The run's name among all runs, kept for ever, and how many server processes have begun it, this one included.

        A site keeps its state under the name, and knows by the number that a message is of a process that is gone.
        """
        known = self.read_json("attempts.json") or {}
        name = str(known.get("run") or f"{_plain(self.path.absolute().name)}-{secrets.token_hex(4)}")
        attempt = int(known.get("attempts", 0)) + 1
        self.write_json("attempts.json", {"run": name, "attempts": attempt})
        return name, attempt

    def noise_key(self) -> bytes:
        """The secret that the server's noise is drawn from, made once; a resumed run goes on with it."""
        return stored_key(self.path / "noise.key")

    # --- metrics ----------------------------------------------------------------------------------

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows to metrics.jsonl, flushed to disk."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """All whole rows; a line torn by a kill is not one."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def replace_rows(self, rows: Iterable[Row]) -> None:
        """Rewrite metrics.jsonl."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- checkpoints ------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint, fingerprint: str) -> None:
        """Write the newest checkpoint of a fold; older ones go, but for every tenth round."""
        metadata = {
            "fold": str(checkpoint.fold),
            "round": str(checkpoint.round),
            "fingerprint": fingerprint,
            "rows": json.dumps(checkpoint.rows),
        }
        state = {_STATE + name: value for name, value in checkpoint.state.items()}
        content = save({**checkpoint.arrays, **state}, metadata)
        write_bytes(self._checkpoint(checkpoint.fold, checkpoint.round), content)
        for known in self._rounds(checkpoint.fold):
            if known < checkpoint.round and known % _KEEP_EVERY:
                self._checkpoint(checkpoint.fold, known).unlink()

    def newest_checkpoint(self, fold: int, fingerprint: str) -> Checkpoint | None:
        """The newest checkpoint of a fold, or None.

        Raises:
            UserError: it was made with another backbone.
        """
        rounds = self._rounds(fold)
        if not rounds:
            return None
        path = self._checkpoint(fold, rounds[-1])
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["fingerprint"] != fingerprint:
            raise UserError(
                f"The checkpoint {path} was made with the backbone {metadata['fingerprint'][:16]}..., "
                f"and the run now has {fingerprint[:16]}...; resume with the same backbone."
            )
        state = {name.removeprefix(_STATE): arrays.pop(name) for name in list(arrays) if name.startswith(_STATE)}
        return Checkpoint(fold, rounds[-1], arrays, json.loads(metadata["rows"]), state)

    def _rounds(self, fold: int) -> list[int]:
        pattern = f"fold-{fold:03d}-round-*.safetensors"
        return sorted(int(path.stem.rsplit("-", 1)[1]) for path in (self.path / "checkpoints").glob(pattern))

    def _checkpoint(self, fold: int, server_round: int) -> Path:
        return self.path / "checkpoints" / f"fold-{fold:03d}-round-{server_round:06d}.safetensors"

    # --- results ----------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        """Write summary.json or another result."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote, or None where it has not."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def summary(self) -> dict[str, Any]:
        """What summary.json holds.

        Raises:
            UserError: the run is not finished or not there.
        """
        try:
            loaded: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} holds no finished run: summary.json cannot be read.") from error
        return loaded


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]|^[.-]", "_", name)[:80] or "run"
