"""The drift monitor: measures at the server, without data, how far the features of classes nobody trains on move."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.backbones.drift_classes import drift_classes
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.data.examples import DEFAULT_TEMPLATES
from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.name_probe import NameProbe

_NUDGE = 0.02
"""Standard deviation of a perturbation of the shared parameters that must change the features."""


class DriftMonitor:
    """Measures drift with the method's own adapter over a broad list of class names.

    Personal parameters keep their initial values: the server knows no others.

    Args:
        class_names: the run's classes, which are excluded.
        initial: the shared parameters of round 0.
    """

    def __init__(self, plan: Plan, backbone: Backbone, class_names: tuple[str, ...], initial: Arrays) -> None:
        self._plan, self._backbone, self._initial = plan, backbone, initial
        self._class_names = class_names
        self._known: dict[bytes, float] = {}

    def drift(self, arrays: Arrays) -> float:
        """The mean cosine distance of the classes' features from the hand-written ones; measured once for the same
        arrays, since each round begins with what the one before ended with."""
        key = _digest(arrays)
        if key not in self._known:
            self._known[key] = float(np.mean(1 - (self._features(arrays) * self._written).sum(1)))
        return self._known[key]

    def slope(self, arrays: Arrays) -> tuple[float, Arrays]:
        """The same, with its gradient with respect to each shared array."""
        written = self._probe.written
        return self._probe.slope(arrays, lambda features: (1 - (features * written).sum(-1)).mean())

    def knowledge(self, vocabulary: Vocabulary, classes: tuple[int, ...]) -> "NameKnowledge":
        """What the names of these classes of a vocabulary show, beside the drift."""
        return NameKnowledge(NameProbe(self._plan, vocabulary, classes), self)

    def require_sensitivity(self) -> None:
        """Raise UserError before training if the features do not depend on what is shared, or exist for the run's
        classes alone."""
        if self._probe.adapter.class_specific:
            raise UserError(
                f"The strategy {self._plan.config.strategy!r} measures drift on classes that nobody trains on, but the "
                f"method {self._plan.config.method!r} learns a context for each class of the run; leave one of them "
                "out."
            )
        rng = generator(self._plan.config.seed, "probe")
        nudged = {
            name: (array + rng.normal(0, _NUDGE, array.shape)).astype(array.dtype)
            for name, array in self._initial.items()
        }
        if np.allclose(self._features(nudged), self._features(self._initial), atol=1e-7):
            raise UserError(
                f"The strategy {self._plan.config.strategy!r} measures drift by the text features of class names, but "
                f"what the method {self._plan.config.method!r} shares does not change them; leave it out."
            )
        if self._plan.composition.needs_slope and not any(slope.any() for slope in self.slope(nudged)[1].values()):
            raise UserError(
                f"The strategy {self._plan.config.strategy!r} follows the gradient of class names' text features, but "
                f"in what the method {self._plan.config.method!r} shares they have none; leave it out."
            )

    @cached_property
    def _probe(self) -> NameProbe:
        names = unheld_names(self._backbone, self._class_names)
        return NameProbe(self._plan, Vocabulary(self._backbone, names, DEFAULT_TEMPLATES))

    @cached_property
    def _written(self) -> NDArray[np.float64]:
        return _plain(self._probe.written)

    def _features(self, arrays: Arrays) -> NDArray[np.float64]:
        return _plain(self._probe.features(arrays))


class NameKnowledge:
    """`Knowledge` of the classes that sites train on, and of the drift classes."""

    def __init__(self, held: NameProbe, monitor: DriftMonitor) -> None:
        self._held, self._monitor = held, monitor

    def features(self, arrays: Arrays) -> NDArray[np.float64]:
        """The method's own class features."""
        return _plain(self._held.features(arrays))

    def slope(self, arrays: Arrays, targets: NDArray[np.float64], retain: float) -> tuple[float, Arrays]:
        """Both terms and the sum of their gradients."""
        wanted = torch.from_numpy(targets).float().to(self._held.written.device)
        value, slopes = self._held.slope(arrays, lambda features: (1 - (features * wanted).sum(-1)).mean())
        if not retain:
            return value, slopes
        drift, drifting = self._monitor.slope(arrays)
        return value + retain * drift, {name: slope + retain * drifting[name] for name, slope in slopes.items()}


def unheld_names(backbone: Backbone, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The drift classes that are no classes of the run."""
    own = {name.lower() for name in class_names}
    return tuple(name for name in drift_classes(backbone.name) if name.lower() not in own)


def _plain(features: Tensor) -> NDArray[np.float64]:
    return features.cpu().numpy().astype(np.float64)


def _digest(arrays: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()
