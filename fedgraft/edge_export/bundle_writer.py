"""Writing a bundle: a directory or one zip whose signed manifest lists every file with its SHA-256.

The same inputs and key give the same bytes: nothing depends on the time, JSON is canonical, and the entries of a zip
have a fixed date and order.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.device.manifest import CLASSES, GOLDEN, LABELS, MANIFEST, PREPROCESSOR, SIGNATURE, canonical
from fedgraft.device.preprocessing import KEYS
from fedgraft.edge_export.bundle_manifest import BundleManifest, FileRecord
from fedgraft.edge_export.signing import signature_file

Contents = dict[str, bytes]
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_GOLDEN_SIZE = (83, 61)


def class_files(labels: Sequence[str], features: NDArray[np.float32], logit_scale: float) -> Contents:
    """classes.safetensors and labels.json."""
    tensors: dict[str, NDArray[Any]] = {
        "class_features": np.ascontiguousarray(features, np.float32),
        "logit_scale": np.asarray(logit_scale, np.float32),
    }
    return {CLASSES: save(tensors), LABELS: canonical({"labels": list(labels)})}


def preprocessor_file(config: Mapping[str, Any]) -> Contents:
    """preprocessor_config.json: the keys that decide pixel values, and the processor type that Hugging Face expects."""
    kept = {key: config[key] for key in KEYS if config.get(key) is not None}
    kept.setdefault("do_center_crop", "crop_size" in kept)
    kind = str(config.get("image_processor_type", "CLIPImageProcessor")).removesuffix("Pil").removesuffix("Fast")
    text = json.dumps({**kept, "image_processor_type": kind}, indent=2, sort_keys=True)
    return {PREPROCESSOR: text.encode() + b"\n"}


def golden_image() -> NDArray[np.uint8]:
    """A synthetic image (height, width, 3) with edges, gradients and odd side lengths."""
    height, width = _GOLDEN_SIZE
    y, x = np.mgrid[:height, :width] / max(_GOLDEN_SIZE)
    disc = (x - 0.35) ** 2 + (y - 0.5) ** 2 < 0.06
    stripes = np.sin(25 * (x + y)) > 0
    channels = (np.where(disc, 1.0, x), np.where(stripes, y, 0.3), np.where(disc & stripes, 0.0, 1 - x * y))
    return np.asarray(255 * np.stack(channels, axis=-1)).round().astype(np.uint8)


def golden_file(image: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Contents:
    """golden.safetensors."""
    return {GOLDEN: save({"image": image, "embedding": embedding})}


def file_records(contents: Contents) -> dict[str, FileRecord]:
    """The manifest's entry for each file."""
    return {
        name: FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in sorted(contents.items())
    }


def check_out(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        UserError: `out` is an existing file or a directory that is not empty.
    """
    if out.suffix == ".zip" and out.exists():
        raise UserError(f"{out} exists already; remove it or give another --out.")
    if out.suffix != ".zip" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty directory; give a new directory, or a name that ends in .zip.")


def write_bundle(out: Path, manifest: BundleManifest, contents: Contents, key: Ed25519PrivateKey) -> None:
    """Write to a temporary place and rename, so that `out` is either complete or absent.

    Args:
        out: a directory, or one zip if the name ends in .zip.
        contents: every file except manifest and signature.
    """
    text = canonical(manifest.model_dump(mode="json"))
    files = {**contents, MANIFEST: text, SIGNATURE: signature_file(key, text)}
    if out.suffix == ".zip":
        write_bytes(out, _zipped(files))
        return
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for name, content in files.items():
            write_bytes(scratch / name, content)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _zipped(files: Contents) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
