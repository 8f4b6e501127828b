"""What a bundle becomes in a fleet: a release, which lists its files, and files under their hashes."""

import hashlib
import json

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.device.agent.metadata import BANK, BUNDLE, Channel, FileOfRelease, Release
from fedgraft.device.bundle import Bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.errors import DeviceError
from fedgraft.device.manifest import MANIFEST, MODEL, SIGNATURE
from fedgraft.device.predictor import Predictor
from fedgraft.fleet.fleet_folder import FleetFolder


def release_of_bundle(opened: Bundle, known: Channel | None) -> Release:
    """The release that a bundle makes; a class bank alone is put beside the newest bundle with its encoder.

    Raises:
        UserError: no release of the channel has the encoder.
        BundleError: the bundle fails its self test.
    """
    manifest = opened.manifest
    part = BUNDLE if manifest.kind == "bundle" else BANK
    files = [FileOfRelease(f"{part}/{name}", entry.sha256, entry.bytes) for name, entry in manifest.files.items()]
    for name in (MANIFEST, SIGNATURE):
        content = opened.raw(name)
        files.append(FileOfRelease(f"{part}/{name}", hashlib.sha256(content).hexdigest(), len(content)))
    signer = opened.signer.hex()
    if part == BUNDLE:
        Predictor(opened, threads=1, remember=False).self_test()
        return Release.of(manifest.version, signer, "", tuple(sorted(files, key=lambda file: file.path)))
    for base in reversed(known.releases if known else ()):
        encoder = next(file for file in base.files if file.path == f"{BUNDLE}/{MODEL}")
        if encoder.sha256 == manifest.encoder:
            kept = [file for file in base.files if file.path.startswith(f"{BUNDLE}/")]
            whole = tuple(sorted([*kept, *files], key=lambda file: file.path))
            return Release.of(manifest.version, base.signer, signer, whole)
    raise UserError(
        f"The class bank {opened.path} is for an encoder that no release of the channel has; publish its bundle first."
    )


def labels_of_bundle(opened: Bundle) -> str:
    """The labels as JSON; raises UserError for one that a page would take for HTML."""
    bank = ClassBank.read(opened)
    if marked := next((label for label in bank.labels if set("<>") & set(label)), None):
        raise UserError(
            f"The label {ascii(marked)[:80]} of the bundle {opened.path} has < or >, which a page would take for HTML; "
            "no device takes it."
        )
    return json.dumps(bank.labels)


def keep_file(folder: FleetFolder, content: bytes) -> None:
    """Store a file under its hash; raises DeviceError if the disk does not take it."""
    path = folder.blob(hashlib.sha256(content).hexdigest())
    if not path.exists():
        try:
            write_bytes(path, content)
        except OSError as error:
            raise DeviceError(f"The file cannot be stored in {path.parent}: {error.strerror}.") from error
