"""A site's personal parameters on disk: one safetensors file for each of its last two rounds.

A round reads the newest state of an earlier round and writes its own beside it. So a round that is repeated after
a kill starts from what it started from before, and a torn write leaves the state before it.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedgraft.errors import UserError
from fedgraft.files import write_bytes

_KEPT = 2


class PersonalState:
    """The personal state of one site in one fold of a run.

    Args:
        folder: holds nothing else.
        identity: what the state belongs to, such as method and fingerprint; another identity is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, server_round: int, tensors: dict[str, Tensor]) -> None:
        """Write the state after a round, and forget all but the last two rounds and any later one."""
        metadata = {"round": str(server_round), "identity": json.dumps(self.identity, sort_keys=True)}
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        write_bytes(self._path(server_round), content)
        earlier = [known for known in self.rounds() if known <= server_round]
        for stale in set(self.rounds()) - set(earlier[-_KEPT:]):
            self._path(stale).unlink()

    def load(self, last_round: int) -> dict[str, Tensor] | None:
        """The newest state that is not newer than a round, or None where the site has none.

        Raises:
            UserError: the state cannot be read or belongs to something else.
        """
        rounds = [known for known in self.rounds() if known <= last_round]
        if not rounds:
            return None
        path = self._path(rounds[-1])
        try:
            with safe_open(path, framework="pt") as file:
                identity = json.loads(file.metadata()["identity"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"The personal state {path} cannot be read: {error}") from error
        if identity != self.identity:
            raise UserError(f"The personal state {path} belongs to {identity}, not to {self.identity}.")
        return tensors

    def rounds(self) -> list[int]:
        """The rounds whose state is on disk, sorted."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors"))

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:06d}.safetensors"
