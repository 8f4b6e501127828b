"""The file `peers` in a site's folder: the public keys of the sites that it masks its updates with.

It has the lines that `fedgraft site key` prints at the other sites, and comes from their administrators, not from the
server. A name may have several keys, as while a site exchanges its own. Lines of the site itself are passed over, so
that all sites can have the same file.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text
from fedgraft.core.plain_text import name_problem, plain
from fedgraft.runs.site_folder import SiteFolder

Peers = dict[str, list[ec.EllipticCurvePublicKey]]
"""The keys of the other sites, by name."""


def read_peers(site: SiteFolder) -> Peers | None:
    """The keys in the file; None if there is no file, and with it nothing to know other sites by.

    Raises:
        UserError: it cannot be read, or a line holds no key with a name.
    """
    try:
        lines = site.peers.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"The file {site.peers} cannot be read: {error}.") from error
    peers: Peers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, key = _entry(line)
        except ValueError as error:
            raise UserError(
                f"{site.peers}, line {number}: {error}; it takes the lines that `fedgraft site key` prints at the "
                "other sites."
            ) from error
        if name != site.settings.name:
            peers.setdefault(name, []).append(key)
    return peers


def require_peers(site: SiteFolder) -> None:
    """Raise UserError if the file cannot be used, or is missing where the policy needs it."""
    if read_peers(site) is None and site.settings.policy.require_known_peers:
        raise UserError(
            f"The policy has require_known_peers, and there is no file {site.peers}; give it the lines that "
            "`fedgraft site key` prints at the other sites."
        )


def own_keys(site: SiteFolder) -> list[str]:
    """The site's lines for the files of others: its public key and, while it exchanges that, the new one."""
    files = [site.public_key, site.path / "keys" / "new" / "site.pub"]
    return [path.read_text().strip() for path in files if path.exists()]


def peer_fingerprints(site: SiteFolder) -> dict[str, list[str]] | None:
    """The fingerprints of the keys in the file, by name; None if there is no file, and UserError as `read_peers`."""
    peers = read_peers(site)
    if peers is None:
        return None
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return {
        name: [key_fingerprint(key.public_bytes(*openssh).decode()) for key in keys] for name, keys in peers.items()
    }


def key_fingerprint(line: str) -> str:
    """The fingerprint of a line's key as `ssh-keygen -lf` shows it."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def exchange_keys(sites: Sequence[SiteFolder]) -> None:
    """Let the sites of one machine know each other, as their administrators do where each has its own."""
    lines = [line for site in sites for line in own_keys(site)]
    for site in sites:
        write_text(site.peers, "\n".join([*lines, ""]))


def public_keys_in(paths: list[Path]) -> list[ec.EllipticCurvePublicKey]:
    """The keys in files of one line each; what cannot be read is passed over."""
    keys = []
    for path in paths:
        try:
            keys.append(_entry(path.read_text())[1])
        except (OSError, ValueError):
            continue
    return keys


def _entry(line: str) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Name and key of a line; raises ValueError with what is wrong."""
    words = line.split(maxsplit=2)
    try:
        key = serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{plain(line, 40)!r} begins with no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError(f"{plain(words[0])!r} is not the type of a site's key")
    name = words[2].strip() if len(words) > 2 else ""
    if problem := name_problem(name):
        raise ValueError(problem)
    return name, key
