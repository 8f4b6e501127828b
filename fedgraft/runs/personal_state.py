"""A site's personal parameters on disk: one safetensors file for each of its last two rounds.

A round reads the newest state of an earlier round and writes its own next to it. So a round that is repeated after a
kill starts from the same state as before, and a torn write leaves the previous state intact.
"""

import hashlib
import json
import time
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes

_KEPT = 2
_BELIEVED_SECONDS = 3600.0
_UNREADABLE = (SafetensorError, OSError, KeyError, ValueError, TypeError)


class PersonalState:
    """The personal state of one site in one fold of a run.

    Args:
        folder: holds nothing else.
        identity: what the state belongs to, such as method and fingerprint; state of another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, server_round: int, tensors: dict[str, Tensor], attempt: int = 0) -> None:
        """Write the state after a round of a server's attempt (see `Job`), and keep that of the round before.

        States of later rounds go: they are of a server process that ended before it could record them.

        Raises:
            UserError: it cannot be written; what was there before is intact.
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
        """Refuse a training request that is stale: its server process is gone, or its round is over.

        A later attempt is believed for an hour after it has written its state, for longer than a message of an earlier
        one may be on its way: a server that counts its attempts wrongly does not lock the run for ever.

        Raises:
            UserError: there is a state of a later attempt, or of a later round of the same one.
        """
        for known in reversed(self.rounds()):
            try:
                metadata = _read(self._path(known))[0]
            except _UNREADABLE:
                continue
            newest = int(metadata.get("attempt", "0")), known
            age = abs(time.time() - self._path(known).stat().st_mtime)
            if newest[0] > attempt and age > _BELIEVED_SECONDS:
                continue
            if newest > (attempt, server_round):
                raise UserError(
                    f"round {server_round} of the server's attempt {attempt} is stale: the site has already trained "
                    f"round {newest[1]} of attempt {newest[0]}"
                )

    def load(self, last_round: int) -> dict[str, Tensor] | None:
        """The newest readable state up to a round, or None if the site has none.

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
        """Size in bytes of each round's state, without those that cannot be read."""
        sizes = {}
        for server_round in self.rounds():
            try:
                _read(self._path(server_round))
            except _UNREADABLE:
                continue
            sizes[server_round] = self._path(server_round).stat().st_size
        return sizes

    def rounds(self) -> list[int]:
        """The rounds with a state on disk, sorted."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors"))

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:06d}.safetensors"


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata without the checksum, and the state.

    Raises:
        ValueError: the content was changed; for a truncated file, safetensors raises its own errors.
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
