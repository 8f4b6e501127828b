"""What a device counts of its predictions: classes, unknown images, latency, confidence; never an image.

The program that predicts adds to `tally.json`; the agent takes it away into a report. Counts are by release, so that an
old one's are not taken for a new one's.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.agent.embedding_sample import Entry, entry_of, smallest
from fedgraft.device.agent.messages import LATENCY_BOUNDS, REPORTED_CLASSES
from fedgraft.device.errors import DeviceError
from fedgraft.device.predictor import Prediction

REFERENCE_PREDICTIONS = 200
"""So many first predictions of a release are what its later confidence is compared with."""
_FILE, _TAKEN = "tally.json", "tally.taken.json"


@dataclass
class Tally:
    """Counts of one release.

    Attributes:
        counts: predictions by the position of the class in the labels; images called unknown are not in them.
        latency: predictions by groups of milliseconds, see LATENCY_BOUNDS.
        confidence: the sum of the probabilities of the predicted classes.
        embeddings: of images called unknown, where the device's owner shares them.
    """

    predictions: int = 0
    unknown: int = 0
    failed: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    confidence: float = 0.0
    embeddings: list[Entry] = field(default_factory=list)

    def add(
        self,
        answer: Prediction,
        position: int,
        milliseconds: float,
        embedding: NDArray[np.float32] | None = None,
    ) -> None:
        """Count a prediction.

        Args:
            position: of its class in the labels.
            milliseconds: that it took.
            embedding: (dim,) of its image, if it may be shared.
        """
        self.predictions += 1
        self.confidence += answer.probability
        self.latency[bisect_left(LATENCY_BOUNDS, milliseconds)] += 1
        if answer.is_unknown:
            self.unknown += 1
            if embedding is not None:
                self.embeddings = smallest([*self.embeddings, entry_of(embedding)])
        else:
            self.counts[position] += 1

    def merge(self, other: "Tally") -> None:
        """Add another one's counts."""
        self.predictions += other.predictions
        self.unknown += other.unknown
        self.failed += other.failed
        self.counts.update(other.counts)
        self.latency = [mine + theirs for mine, theirs in zip(self.latency, other.latency, strict=True)]
        self.confidence += other.confidence
        self.embeddings = smallest([*self.embeddings, *other.embeddings])

    def content(self) -> dict[str, Any]:
        """As JSON, with the most frequent classes."""
        return {**asdict(self), "counts": sorted(self.counts.most_common(REPORTED_CLASSES))}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """From JSON; raises ValueError, TypeError or KeyError if it is invalid."""
        counts: Counter[int] = Counter({int(position): int(count) for position, count in content["counts"]})
        latency = [int(count) for count in content["latency"]]
        if len(latency) != len(LATENCY_BOUNDS) + 1:
            raise ValueError("its latencies have other groups")
        numbers = {name: int(content[name]) for name in ("predictions", "unknown", "failed")}
        embeddings = [(float(drawn), str(text)) for drawn, text in content.get("embeddings", [])]
        confidence = float(content["confidence"])
        return cls(**numbers, counts=counts, latency=latency, confidence=confidence, embeddings=smallest(embeddings))


def add_tally(folder: DeviceFolder, release: str, tally: Tally) -> None:
    """Add counts to those of a device's folder that were not reported yet."""
    with folder.locked():
        kept = _read(folder, _FILE)
        kept.setdefault(release, Tally()).merge(tally)
        folder.write_json(_FILE, {name: each.content() for name, each in kept.items()})


def taken_tallies(folder: DeviceFolder) -> dict[str, dict[str, Any]]:
    """The counts that were not reported yet, by release, set aside until `forget_taken`; the caller holds the lock.

    They are set aside by a rename: after a kill they are in the one file or in the other, and never in both.
    """
    with suppress(FileNotFoundError):
        if not (folder.path / _TAKEN).exists():
            (folder.path / _FILE).rename(folder.path / _TAKEN)
    return {release: tally.content() for release, tally in _read(folder, _TAKEN).items()}


def forget_taken(folder: DeviceFolder) -> None:
    """Give up the counts that were set aside, once they are in a report on the disk; the caller holds the lock."""
    (folder.path / _TAKEN).unlink(missing_ok=True)


def _read(folder: DeviceFolder, name: str) -> dict[str, Tally]:
    try:
        content = folder.read_json(name) or {}
        return {str(release): Tally.parse(each) for release, each in content.items()}
    except (DeviceError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # counts are no reason to stop predicting
