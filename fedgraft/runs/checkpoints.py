"""Checkpoints of a run: the shared parameters after a round, with the rows that report it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.core.plain_text import plain
from fedgraft.data.results import Row
from fedgraft.flower.messages import Arrays
from fedgraft.runs.run_files import parsed, require_row

_KEEP_EVERY = 10
_NAME = re.compile(r"fold-[0-9]+-round-([0-9]+)\.safetensors")
_STATE = "strategy state/"
"""Prefix of the strategy's state, which is stored in one file with the shared parameters."""


@dataclass(frozen=True)
class Checkpoint:
    """The shared parameters after a round, the rows that report its training, and the strategy's state."""

    fold: int
    round: int
    arrays: Arrays
    rows: list[Row]
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    def require_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError unless its parameters are those of the method, float32 of the expected shapes."""
        shapes = {name: array.shape for name, array in self.arrays.items() if array.dtype == np.float32}
        if shapes != dict(expected):
            raise UserError(
                f"The checkpoint of round {self.round} has the parameters {plain(str(shapes))}, but the method needs "
                f"{plain(str(dict(expected)))}, all float32."
            )


class Checkpoints:
    """The checkpoints of a run: for each fold the newest, and every tenth round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint, fingerprint: str) -> None:
        """Write the newest checkpoint of a fold and delete older ones, except every tenth round."""
        metadata = {
            "fold": str(checkpoint.fold),
            "round": str(checkpoint.round),
            "fingerprint": fingerprint,
            "rows": json.dumps(checkpoint.rows),
        }
        state = {_STATE + name: value for name, value in checkpoint.state.items()}
        write_bytes(self._path(checkpoint.fold, checkpoint.round), save({**checkpoint.arrays, **state}, metadata))
        for known in self.rounds(checkpoint.fold):
            if known < checkpoint.round and known % _KEEP_EVERY:
                self._path(checkpoint.fold, known).unlink()

    def newest(self, fold: int, fingerprint: str) -> Checkpoint | None:
        """The newest checkpoint of a fold, or None.

        Raises:
            UserError: it cannot be read, or was made with another backbone.
        """
        rounds = self.rounds(fold)
        if not rounds:
            return None
        path = self._path(fold, rounds[-1])
        metadata, arrays = _read(path)
        if metadata["fingerprint"] != fingerprint:
            raise UserError(
                f"The checkpoint {path} was made with the backbone {metadata['fingerprint'][:16]}..., "
                f"but the run now has {fingerprint[:16]}...; resume with the same backbone."
            )
        state = {name.removeprefix(_STATE): arrays.pop(name) for name in list(arrays) if name.startswith(_STATE)}
        return Checkpoint(fold, rounds[-1], arrays, _rows(metadata["rows"], path), state)

    def rounds(self, fold: int | None = None) -> list[int]:
        """The rounds with a checkpoint in a fold, or in any fold, sorted."""
        pattern = "fold-*" if fold is None else f"fold-{fold:03d}-round-*"
        names = (_NAME.fullmatch(path.name) for path in self._folder.glob(f"{pattern}.safetensors"))
        return sorted(int(name[1]) for name in names if name)

    def newest_round(self) -> int:
        """The last completed round of any fold, or 0."""
        return max(self.rounds(), default=0)

    def _path(self, fold: int, server_round: int) -> Path:
        return self._folder / f"fold-{fold:03d}-round-{server_round:06d}.safetensors"


def _read(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """A checkpoint's metadata and arrays; raises UserError if it is damaged or no checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(f"The checkpoint {path} cannot be read: {plain(str(error))}.") from error
    if missing := {"fingerprint", "rows"} - metadata.keys():
        raise UserError(f"The checkpoint {path} cannot be read: it lacks {', '.join(sorted(missing))}.")
    return metadata, arrays


def _rows(text: str, path: Path) -> list[Row]:
    rows = parsed(text, f"The metadata 'rows' of {path}")
    if not isinstance(rows, list):
        raise UserError(f"The metadata 'rows' of {path} is not a list.")
    for row in rows:
        require_row(row, f"A row in the metadata of {path}")
    return rows
