"""A site's personal parameters on disk: one safetensors file for each of its last two rounds.

A round reads the newest state of an earlier round and writes its own beside it. So a round that is repeated after
a kill starts from what it started from before, and a torn write leaves the state before it.
"""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes

_KEPT = 2
_UNREADABLE = (SafetensorError, OSError, KeyError, ValueError, TypeError)


class PersonalState:
    """The personal state of one site in one fold of a run.

    Args:
        folder: holds nothing else.
        identity: what the state belongs to, such as method and fingerprint; another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, server_round: int, tensors: dict[str, Tensor], attempt: int = 0) -> None:
        """Write the state after a round, and forget all but the last two rounds and any later one.

        Args:
            attempt: of the server, see `Job`.

        Raises:
            UserError: it cannot be written; what was there before is there still.
        """
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {
            "round": str(server_round),
            "attempt": str(attempt),
            "identity": json.dumps(self.identity, sort_keys=True),
        }
        content = save(whole, {**metadata, "sha256": _checksum(metadata, whole)})
        try:
            write_bytes(self._path(server_round), content)
        except OSError as error:
            raise UserError(f"The personal state cannot be written to {self.folder}: {error.strerror}.") from error
        earlier = [known for known in self.rounds() if known <= server_round]
        for stale in set(self.rounds()) - set(earlier[-_KEPT:]):
            self._path(stale).unlink()

    def refuse_stale(self, attempt: int, server_round: int) -> None:
        """Refuse a training that came too late: its server process is gone, or its round is over.

        Raises:
            UserError: a state of a later attempt, or of a later round of the same one, is there.
        """
        for known in reversed(self.rounds()):
            try:
                metadata = _read(self._path(known))[0]
            except _UNREADABLE:
                continue
            newest = int(metadata.get("attempt", "0")), known
            if newest > (attempt, server_round):
                raise UserError(
                    f"round {server_round} of the server's start {attempt} comes too late: the site has trained round "
                    f"{newest[1]} of start {newest[0]}"
                )

    def load(self, last_round: int) -> dict[str, Tensor] | None:
        """The newest state that is not newer than a round, or None where the site has none.

        A state that is not whole gives way to the one of the round before.

        Raises:
            UserError: no state can be read, or it belongs to something else.
        """
        rounds = [known for known in self.rounds() if known <= last_round]
        if not rounds:
            return None
        unreadable: UserError | None = None
        for server_round in reversed(rounds):
            path = self._path(server_round)
            try:
                metadata, tensors = _read(path)
            except _UNREADABLE as error:
                unreadable = unreadable or UserError(f"The personal state {path} cannot be read: {error}")
                continue
            if (identity := json.loads(metadata["identity"])) != self.identity:
                raise UserError(f"The personal state {path} belongs to {identity}, not to {self.identity}.")
            return tensors
        assert unreadable is not None
        raise unreadable

    def sizes(self) -> dict[int, int]:
        """Bytes of each round's state that can be read whole; one that cannot is left out."""
        sizes = {}
        for server_round in self.rounds():
            try:
                _read(self._path(server_round))
            except _UNREADABLE:
                continue
            sizes[server_round] = self._path(server_round).stat().st_size
        return sizes

    def rounds(self) -> list[int]:
        """The rounds whose state is on disk, sorted."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors"))

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:06d}.safetensors"


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata but for the checksum, and the state.

    Raises:
        ValueError: a byte is not what was written; safetensors raises errors of its own for a torn file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.pop("sha256") != _checksum(metadata, tensors):
        raise ValueError("its content does not match its checksum")
    return metadata, tensors


def _checksum(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
