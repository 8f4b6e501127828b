"""Checkpoints of a run: the shared parameters after a round, with the rows that report it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.data.results import Row
from fedgraft.flower.messages import Arrays

_KEEP_EVERY = 10
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
        """The newest checkpoint of a fold, or None; raises UserError if it was made with another backbone."""
        rounds = self.rounds(fold)
        if not rounds:
            return None
        path = self._path(fold, rounds[-1])
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["fingerprint"] != fingerprint:
            raise UserError(
                f"The checkpoint {path} was made with the backbone {metadata['fingerprint'][:16]}..., "
                f"but the run now has {fingerprint[:16]}...; resume with the same backbone."
            )
        state = {name.removeprefix(_STATE): arrays.pop(name) for name in list(arrays) if name.startswith(_STATE)}
        return Checkpoint(fold, rounds[-1], arrays, json.loads(metadata["rows"]), state)

    def rounds(self, fold: int | None = None) -> list[int]:
        """The rounds with a checkpoint in a fold, or in any fold, sorted."""
        pattern = "fold-*" if fold is None else f"fold-{fold:03d}-round-*"
        return sorted(int(path.stem.rsplit("-", 1)[1]) for path in self._folder.glob(f"{pattern}.safetensors"))

    def newest_round(self) -> int:
        """The last completed round of any fold, or 0."""
        return max(self.rounds(), default=0)

    def _path(self, fold: int, server_round: int) -> Path:
        return self._folder / f"fold-{fold:03d}-round-{server_round:06d}.safetensors"
