"""The part of manifest.json that a device needs, checked by hand; schemas/manifest.schema.json describes all of it."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Self

FORMAT_VERSION = 1
MODEL, CLASSES, LABELS, PREPROCESSOR = "model.onnx", "classes.safetensors", "labels.json", "preprocessor_config.json"
GOLDEN, MANIFEST, SIGNATURE = "golden.safetensors", "manifest.json", "manifest.sig"
REQUIRED = {
    "bundle": frozenset({MODEL, CLASSES, LABELS, PREPROCESSOR, GOLDEN}),
    "classes": frozenset({CLASSES, LABELS}),
}
"""The files of each kind of bundle; "classes" is a class bank alone, for an encoder that the device already has."""
OTHER_MODELS = ("openvino/model.bin", "executorch/model.pte")
"""Weights for other runtimes than onnxruntime, which a device of fedgraft's does not read."""
SIZE_LIMITS = {MODEL: 2**31, CLASSES: 2**28, LABELS: 2**22, PREPROCESSOR: 2**16, GOLDEN: 2**24}
SIZE_LIMITS |= dict.fromkeys(OTHER_MODELS, 2**31)
OTHER_LIMIT = 2**26
LARGEST_VERSION, LARGEST_DIM = 2**53 - 1, 2**16
"""The most bytes of a file: of those above, and of any other, such as a file of the web page."""
LEAST_GOLDEN_COSINE, LEAST_GOLDEN_AGREEMENT = 0.9, 50.0
"""A bundle cannot ask for less in a device's self test, which would then find nothing."""
MOST_GOLDEN_IMAGES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest lists it."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class GoldenLimits:
    """What a device's self test requires.

    Attributes:
        min_cosine: least cosine to the golden embedding.
        images: how many other golden images there are; 0 in bundles of before 0.2.
        min_centred_cosine: least mean of their centred cosines.
        min_agreement: least percent of them that get the exporter's class.
    """

    min_cosine: float
    images: int
    min_centred_cosine: float
    min_agreement: float

    @classmethod
    def parse(cls, table: dict[str, Any]) -> Self:
        """Check the manifest's table; raises ValueError if it is invalid."""
        images = _whole(table.get("images", 0), "images", 0, MOST_GOLDEN_IMAGES)
        centred, agreement = table.get("min_centred_cosine"), table.get("min_agreement")
        return cls(
            min_cosine=_between(table.get("min_cosine"), "min_cosine", LEAST_GOLDEN_COSINE, 1),
            images=images,
            min_centred_cosine=_between(centred, "min_centred_cosine", LEAST_GOLDEN_COSINE, 1) if images else 1.0,
            min_agreement=_between(agreement, "min_agreement", LEAST_GOLDEN_AGREEMENT, 100) if images else 100.0,
        )


@dataclass(frozen=True)
class Manifest:
    """The part of a manifest that decides what a device does.

    Attributes:
        kind: "bundle" or "classes".
        version: of the bundle; a device never goes back to a lower one.
        encoder: SHA-256 of the model.onnx that the class bank is for.
        dim: embedding dimension.
        temperature: divides the scaled cosines to calibrate probabilities.
        unknown_below: probability below which an image is "unknown".
        golden: what the self test requires; None for a class bank alone.
        saturating_pairs: pairs of 8-bit weights whose products can saturate without VNNI; None if that is not known.
        files: by name.
        content: the whole manifest.
    """

    kind: str
    version: int
    encoder: str
    dim: int
    temperature: float
    unknown_below: float
    golden: GoldenLimits | None
    saturating_pairs: int | None
    files: dict[str, FileEntry]
    content: dict[str, Any]

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Check a manifest of this format version; raises ValueError if it is invalid."""
        kind = content.get("kind")
        if not isinstance(kind, str) or kind not in REQUIRED:
            raise ValueError(f"kind is {repr(kind)[:80]}, not {' or '.join(REQUIRED)}")
        files = content.get("files")
        if not isinstance(files, dict):
            raise ValueError("files is not an object")
        entries = {_file_name(name): _file_entry(name, entry) for name, entry in files.items()}
        if lacking := sorted(REQUIRED[kind] - set(entries)):
            raise ValueError(f"{lacking[0]} is not listed")
        calibration, golden = _table(content, "calibration"), _table(content, "golden") if kind == "bundle" else None
        manifest = cls(
            kind=kind,
            version=_whole(content.get("version"), "version", 0, LARGEST_VERSION),
            encoder=_digest(content.get("encoder"), "encoder"),
            dim=_whole(content.get("dim"), "dim", 1, LARGEST_DIM),
            temperature=_between(calibration.get("temperature"), "temperature", 1e-3, 1e3),
            unknown_below=_between(calibration.get("unknown_below"), "unknown_below", 0, 1),
            golden=None if golden is None else GoldenLimits.parse(golden),
            saturating_pairs=_saturating_pairs(content),
            files=entries,
            content=content,
        )
        if kind == "bundle" and entries[MODEL].sha256 != manifest.encoder:
            raise ValueError("encoder is not the SHA-256 of model.onnx")
        return manifest


def canonical(value: Any) -> bytes:
    """Canonical JSON in UTF-8, with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _file_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 200 or name in (MANIFEST, SIGNATURE):
        raise ValueError(f"{name!r} is not a relative path of plain characters without '..'")
    return name


def _file_entry(name: str, entry: Any) -> FileEntry:
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of {name} has no sha256 and bytes")
    size, limit = _whole(entry.get("bytes"), f"bytes of {name}", 0, 2**63), SIZE_LIMITS.get(name, OTHER_LIMIT)
    if size > limit:
        raise ValueError(f"{name} is listed with {size:,} bytes; the limit is {limit:,}")
    return FileEntry(_digest(entry.get("sha256"), f"sha256 of {name}"), size)


def _table(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value


def _saturating_pairs(content: dict[str, Any]) -> int | None:
    parity = content.get("parity")
    saturation = parity.get("saturation") if isinstance(parity, dict) else None
    if saturation is None:
        return None
    pairs = saturation.get("pairs") if isinstance(saturation, dict) else saturation
    return _whole(pairs, "pairs", 0, LARGEST_VERSION)


def _whole(value: Any, key: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {repr(value)[:80]}, not a whole number from {least} to {most}")
    return value


def _digest(value: Any, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{key} is {repr(value)[:80]}, not a SHA-256")
    return value


def _between(value: Any, key: str, least: float, most: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{key} is {repr(value)[:80]}, not a number between {least:g} and {most:g}")
    return float(value)
