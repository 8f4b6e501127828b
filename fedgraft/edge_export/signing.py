"""The key that signs bundles: created once and kept private, with its public half beside it for devices to pin."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_private, write_text
from fedgraft.device.manifest import canonical


def default_key() -> Path:
    """The user's signing key, below $XDG_CONFIG_HOME or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fedgraft" / "signing.key"


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file; if the file does not exist, a new key, mode 0600, with its public half beside it.

    Raises:
        UserError: the file is not an Ed25519 key, or others may read it.
    """
    if not path.exists():
        return _new_key(path)
    if path.stat().st_mode & 0o077:
        raise UserError(f"Others may read the signing key {path}; make it private (chmod 600), or give another --key.")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a private key in PEM without a password: {error}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is not an Ed25519 key; remove it to have one created, or give another --key.")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def signature_file(key: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """The content of manifest.sig."""
    public, signature = public_bytes(key).hex(), key.sign(manifest).hex()
    return canonical({"algorithm": "ed25519", "public_key": public, "signature": signature})


def _new_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    if not path.parent.exists():
        path.parent.mkdir(parents=True, mode=0o700)
    write_private(path, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_text(path.with_suffix(".pub"), public.decode())
    return key
