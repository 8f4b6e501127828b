"""The run directory: configuration, metrics row by row, split, checkpoints, summary. Every file in it is complete."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import read_toml
from fedgraft.core.errors import UserError
from fedgraft.core.files import stored_key, take_lock, write_text
from fedgraft.data.results import Row
from fedgraft.data.split import Split
from fedgraft.runs.checkpoints import Checkpoints
from fedgraft.runs.run_files import KINDS, JsonObject, read_json, rows_of
from fedgraft.runs.split_file import read_split, write_split

_POLL_SECONDS = 0.2
_SPLIT, _SPLIT_OF_0_1 = "split.safetensors", "deal.safetensors"


class RunDirectory:
    """A run on disk; nothing else knows where a run's files are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._lock: IO[str] | None = None

    # --- configuration ----------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether it holds a run."""
        return (self.path / "config.toml").is_file()

    @property
    def finished(self) -> bool:
        """Whether it holds a run that has ended."""
        return (self.path / "summary.json").is_file()

    @property
    def report(self) -> Path:
        """The run's report."""
        return self.path / "report.html"

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            UserError: there is no run, or this version does not understand its configuration.
        """
        if not self.begun:
            raise UserError(f"There is no run in {self.path}: it has no config.toml.")
        return RunConfig.build(read_toml(self.path / "config.toml"))

    def check_free(self, config: RunConfig, resume: bool) -> None:
        """Raise UserError if a new or resumed run cannot use this directory, before anything is written."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out takes a directory.")
        if not self.begun:
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"The directory {self.path} is not empty and contains no run; give another --out.")
            if resume:
                raise UserError(f"There is no run to resume in {self.path}.")
            return
        if not resume:
            raise UserError(f"The directory {self.path} holds a run; add --resume to resume it or give another --out.")
        known, given = self.config().model_dump(), config.model_dump()
        if different := [key for key in given if known[key] != given[key]]:
            key = different[0]
            raise UserError(
                f"The run in {self.path} has {key} = {known[key]!r}, not {given[key]!r}; "
                "resume it with its own configuration."
            )

    def create(self, config: RunConfig) -> None:
        """Write the complete configuration."""
        write_text(self.path / "config.toml", config.to_toml())

    # --- locking and attempts ---------------------------------------------------------------------

    def lock(self, seconds: float = 0.0) -> None:
        """Lock the directory for this process until `unlock` or its end.

        Args:
            seconds: how long to wait for another process to release it.

        Raises:
            UserError: another process is using the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / ".lock").open("w")
        deadline = time.monotonic() + seconds
        while not take_lock(file):
            if time.monotonic() >= deadline:
                file.close()
                raise UserError(f"Another process is using the run in {self.path}; wait for it or stop it.")
            time.sleep(_POLL_SECONDS)
        self._lock = file

    def unlock(self) -> None:
        """Let other processes use the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_locked(self) -> bool:
        """Whether a process is using the run."""
        if not (self.path / ".lock").exists():
            return False
        with (self.path / ".lock").open("a") as file:
            return not take_lock(file)

    def begin_attempt(self) -> tuple[str, int]:
        """The run's permanent, unique name, and how many server processes have started it, including this one.

        A site keeps its state under the name, and recognizes by the number a message from a process that is gone.
        """
        known = self.read_json("attempts.json") or {}
        name = str(known.get("run") or f"{_plain(self.path.absolute().name)}-{secrets.token_hex(4)}")
        attempt = int(known.get("attempts", 0)) + 1
        self.write_json("attempts.json", {"run": name, "attempts": attempt})
        return name, attempt

    def deployed_name(self) -> str | None:
        """The name under which deployed sites keep their state; None if no site has taken part."""
        attempts = self.read_json("attempts.json")
        return None if attempts is None else str(attempts["run"])

    def noise_key(self) -> bytes:
        """The secret that the server's noise is drawn from, created once and kept when the run is resumed."""
        return stored_key(self.path / "noise.key")

    # --- what sites hold --------------------------------------------------------------------------

    def write_split(self, split: Split) -> None:
        """Store which site holds which image."""
        write_split(self.path / _SPLIT, split)

    @cached_property
    def split(self) -> Split:
        """Which site holds which image; raises UserError if it was not written or is damaged."""
        old = self.path / _SPLIT_OF_0_1
        return read_split(old if old.exists() else self.path / _SPLIT)

    def personal_state(self, fold: int, site: int) -> Path:
        """The folder of a simulated site's personal state."""
        return self.path / "sites" / f"{fold:03d}" / f"{site:06d}"

    @property
    def open_rounds(self) -> Path:
        """The folder of what simulated sites keep between the messages of secure aggregation."""
        return self.path / "open_rounds"

    # --- metrics ----------------------------------------------------------------------------------

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows to metrics.jsonl, flushed to disk."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """All complete rows, without a line torn by a kill; raises UserError if a line is no row."""
        path = self.path / "metrics.jsonl"
        return list(rows_of(path, torn=True)) if path.exists() else []

    def replace_rows(self, rows: Iterable[Row]) -> None:
        """Rewrite metrics.jsonl."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- results ----------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        """Write summary.json or another result."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote, or None; raises UserError if it holds anything that it cannot have written."""
        path = self.path / name
        return read_json(path, KINDS.get(name, JsonObject)) if path.exists() else None

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; raises UserError if there is no finished run, or the file is not whole."""
        if not self.finished:
            raise UserError(f"{self.path} holds no finished run: it has no summary.json.")
        summary: dict[str, Any] = self.read_json("summary.json")
        return summary


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]|^[.-]", "_", name)[:80] or "run"
