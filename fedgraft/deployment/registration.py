"""The keys that a running SuperLink admits: registered, unregistered, and brought in line with the server's folder."""

import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from fedgraft.core.errors import RunFailed
from fedgraft.flower.guarded import OPERATOR_HEADER, secret_text
from fedgraft.flower.internals import NodeRegistry
from fedgraft.runs.server_folder import ServerFolder

_OVERLAP_DAYS = 30.0
"""How long a replaced key counts if its site never connects with the new one."""


def registry(folder: ServerFolder) -> NodeRegistry:
    """The registry of a running SuperLink, as its operator."""
    headers = {OPERATOR_HEADER: secret_text(folder.operator_secret)}
    return NodeRegistry(f"127.0.0.1:{folder.superlink_port}", str(folder.authority), headers)


def register_key(folder: ServerFolder, key: Path) -> None:
    """Register a site's key with a running SuperLink, unless it knows the key; raises RunFailed if it refuses."""
    with registry(folder) as nodes:
        public = _pem(key)
        if public not in {node.key for node in nodes.nodes()}:
            nodes.register(public, key.stem)


def unregister_keys(folder: ServerFolder, keys: list[Path]) -> None:
    """Unregister keys with a running SuperLink, which speaks with their nodes no more; raises RunFailed as above."""
    gone = {_pem(key) for key in keys}
    with registry(folder) as nodes:
        for node in nodes.nodes():
            if node.key in gone:
                nodes.unregister(node.node)


def reconcile(folder: ServerFolder) -> list[str]:
    """Let a running SuperLink admit the keys of the folder and no others; a line for each stranger.

    Raises:
        RunFailed: the SuperLink does not answer.
    """
    wanted = {_pem(key): key.stem for key in folder.admitted()} | {_pem(key): name for name, key in folder.replaced()}
    lines = []
    with registry(folder) as nodes:
        known = nodes.nodes()
        for node in known:
            if node.key not in wanted:
                nodes.unregister(node.node)
                who = f"the name {node.name!r}" if node.name else "no name"
                lines.append(f"Unregistered node {node.node} with {who}: its key is not among the admitted ones.")
        for key in sorted(wanted.keys() - {node.key for node in known}, key=wanted.__getitem__):
            try:
                nodes.register(key, wanted[key])
            except RunFailed as error:
                lines.append(
                    f"The key of {wanted[key]!r} cannot be registered ({error}); if it was revoked before, "
                    "`fedgraft site rotate` makes the site a new one."
                )
    return lines


def retire_replaced_keys(folder: ServerFolder) -> list[str]:
    """Let a replaced key count no more once its site has connected with the new one; a line for each.

    Raises:
        RunFailed: the SuperLink does not answer.
    """
    if not (replaced := folder.replaced()):
        return []
    lines = []
    with registry(folder) as nodes:
        connected = {node.key for node in nodes.nodes() if node.connected}
    for name, key in replaced:
        days = (time.time() - key.stat().st_mtime) / 86400
        new = folder.path / "admitted" / f"{name}.pub"
        if days > _OVERLAP_DAYS or (new.exists() and _pem(new) in connected):
            unregister_keys(folder, [key])
            folder.retire(name)
            lines.append(f"The former key of {name!r} counts no more.")
    return lines


def _pem(key: Path) -> bytes:
    """A public key in the format in which a SuperLink keeps it."""
    public = serialization.load_ssh_public_key(key.read_bytes())
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
