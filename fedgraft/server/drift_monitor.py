"""The drift monitor: measures at the server, without data, how far the features of classes nobody trains on move."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.backbones import Backbone
from fedgraft.backbones.drift_classes import drift_classes
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.data.examples import DEFAULT_TEMPLATES
from fedgraft.flower.messages import Arrays
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary

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

    def drift(self, arrays: Arrays) -> float:
        """The mean cosine distance of the classes' features from the hand-written ones."""
        return float(np.mean(1 - (self._features(arrays) * self._written).sum(1)))

    def require_sensitivity(self) -> None:
        """Raise UserError before training if the features do not depend on what is shared, or exist for the run's
        classes alone."""
        if self._adapter.class_specific:
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

    @cached_property
    def _adapter(self) -> Adapter:
        own = {name.lower() for name in self._class_names}
        names = [name for name in drift_classes(self._backbone.name) if name.lower() not in own]
        return self._plan.adapter(Vocabulary(self._backbone, names, DEFAULT_TEMPLATES))

    @cached_property
    def _written(self) -> NDArray[np.float64]:
        written: NDArray[Any] = self._adapter.vocabulary.zero_shot.cpu().numpy()
        return written.astype(np.float64)

    @torch.no_grad()
    def _features(self, arrays: Arrays) -> NDArray[np.float64]:
        adapter = self._adapter
        adapter.load({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
        features: NDArray[Any] = adapter.class_features(tuple(range(len(self._written)))).cpu().numpy()
        return features.astype(np.float64)
