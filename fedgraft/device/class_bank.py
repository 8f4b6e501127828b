"""The class bank: one row of text features per class, and what turns cosines into calibrated probabilities."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedgraft.device.bundle import Bundle
from fedgraft.device.errors import BundleError
from fedgraft.device.manifest import CLASSES, LABELS
from fedgraft.device.tensors import read_tensors

LABELS_LIMIT = 100_000
LABEL_LENGTH = 256
"""Characters of a label at most."""
_LARGEST_SCALE = 1e5


@dataclass(frozen=True, eq=False)
class ClassBank:
    """What a device knows of the classes; swapped as one object, so that a reader sees either the old or the new bank.

    Attributes:
        labels: the C names.
        features: (C, dim) of unit norm.
        scale: factor on the cosines: logit scale / temperature.
        unknown_below: probability below which an image is "unknown".
        version: of the bundle it came with.
        digest: SHA-256 of that bundle's manifest.
    """

    labels: tuple[str, ...]
    features: NDArray[np.float32]
    scale: float
    unknown_below: float
    version: int
    digest: str

    @classmethod
    def read(cls, bundle: Bundle) -> Self:
        """The class bank of a bundle; raises BundleError if its labels or features are invalid."""
        labels = bundle.read_json(LABELS)
        try:
            names = check_labels(labels["labels"] if isinstance(labels, dict) else None)
            tensors = read_tensors(bundle.read(CLASSES))
            features, logit_scale = tensors["class_features"], float(tensors["logit_scale"].reshape(()))
            _check_features(features, (len(names), bundle.manifest.dim), logit_scale)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"The class bank of the bundle {bundle.path} cannot be used: {error}.") from error
        manifest = bundle.manifest
        scale = logit_scale / manifest.temperature
        return cls(names, features, scale, manifest.unknown_below, manifest.version, bundle.digest)

    def probabilities(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities (B, C) of embeddings (B, dim)."""
        logits = self.scale * (embeddings @ self.features.T).astype(np.float64)
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def check_labels(labels: Any) -> tuple[str, ...]:
    """Return the labels; raises ValueError if they are not at least two distinct names."""
    if not isinstance(labels, list | tuple) or not 2 <= len(labels) <= LABELS_LIMIT:
        raise ValueError(f"the labels are not a list of 2 to {LABELS_LIMIT:,} names")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ValueError(f"{repr(label)[:80]} is not a label: a label is printable text")
        if len(label) > LABEL_LENGTH:
            raise ValueError(f"the label {label[:40]!r}... has {len(label):,} characters; the limit is {LABEL_LENGTH}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"the label {next(label for label in labels if labels.count(label) > 1)!r} appears twice")
    return tuple(labels)


def _check_features(features: NDArray[Any], shape: tuple[int, int], logit_scale: float) -> None:
    if features.dtype != np.float32 or features.shape != shape:
        raise ValueError(f"its features are {features.dtype} with shape {features.shape}, not float32 with {shape}")
    if not np.isfinite(features).all():
        raise ValueError("its features are not finite")
    if not 0 < logit_scale <= _LARGEST_SCALE:
        raise ValueError(f"its logit_scale is {logit_scale:g}, not between 0 and {_LARGEST_SCALE:g}")
    if np.abs(np.linalg.norm(features, axis=1) - 1).max() > 1e-3:
        raise ValueError("its features do not have unit norm")
