"""Calibrated probabilities: one temperature (Guo et al., ICML 2017), and a threshold for unknown images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_LEAST, _MOST = 0.05, 20.0
_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """A fit and its quality.

    Attributes:
        temperature: divides logit scale x cosine.
        unknown_below: probability below which an image is "unknown".
        ece_before, ece: expected calibration error in percent, without and with the temperature; None without labels.
        known_rejected: percent of the images below the threshold; None without images.
    """

    temperature: float = 1.0
    unknown_below: float = 0.0
    images: int = 0
    ece_before: float | None = None
    ece: float | None = None
    known_rejected: float | None = None


def fit(logits: FloatArray, labels: NDArray[np.int64], unknown_rate: float) -> Calibration:
    """Find the temperature of least cross-entropy, and the threshold that a fraction of the images falls below.

    Args:
        logits: (n, C), logit scale x cosine, of images that are not test images.
        labels: (n,).
        unknown_rate: that fraction.
    """
    temperature = best_temperature(logits, labels)
    confidence = _probabilities(logits, temperature).max(axis=1)
    threshold = float(np.quantile(confidence, unknown_rate)) if unknown_rate > 0 else 0.0
    threshold = round(threshold, 6)
    return Calibration(
        temperature=temperature,
        unknown_below=threshold,
        images=len(labels),
        ece_before=calibration_error(_probabilities(logits, 1.0), labels),
        ece=calibration_error(_probabilities(logits, temperature), labels),
        known_rejected=float(100 * (confidence < threshold).mean()),
    )


def best_temperature(logits: FloatArray, labels: NDArray[np.int64]) -> float:
    """Golden-section search over the logarithm, in which the cross-entropy has a single minimum."""
    low, high = np.log(_LEAST), np.log(_MOST)
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _cross_entropy(logits, labels, np.exp(left)) <= _cross_entropy(logits, labels, np.exp(right)):
            high = right
        else:
            low = left
    return round(float(np.exp((low + high) / 2)), 6)


def calibration_error(probabilities: FloatArray, labels: NDArray[np.int64]) -> float:
    """Expected calibration error in percent, over equal-width bins of the largest probability."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = [abs((right[bins == b]).sum() - confidence[bins == b].sum()) for b in range(_BINS)]
    return float(100 * sum(gaps) / len(labels))


def _cross_entropy(logits: FloatArray, labels: NDArray[np.int64], temperature: float) -> float:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())


def _probabilities(logits: FloatArray, temperature: float) -> FloatArray:
    scaled = logits / temperature
    grown = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))
