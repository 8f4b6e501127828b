"""What the server knows without any data: how far shared parameters carry the features of classes nobody trains."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.adapters.base import Adapter, Method, Seat, Vocabulary
from fedgraft.backbones import Backbone
from fedgraft.backbones.probes import probe_names
from fedgraft.config import RunConfig
from fedgraft.data.examples import DEFAULT_TEMPLATES
from fedgraft.errors import UserError
from fedgraft.messages import Arrays
from fedgraft.randomness import derived_seed, generator

_NUDGE = 0.02
"""Standard deviation of the change that the probes must notice."""


class Probe:
    """Measures drift with the method's own adapter over the probe names.

    Personal parameters are the initial ones: the server knows no others.

    Args:
        class_names: of the run; they are left out.
        initial: the shared parameters of round 0.
    """

    def __init__(
        self, method: Method, config: RunConfig, backbone: Backbone, class_names: tuple[str, ...], initial: Arrays
    ) -> None:
        self._method, self._config, self._backbone, self._initial = method, config, backbone, initial
        self._class_names = class_names

    def drift(self, arrays: Arrays) -> float:
        """The mean cosine distance of the probes' features from the hand-written ones."""
        return float(np.mean(1 - (self._features(arrays) * self._written).sum(1)))

    def require_answer(self) -> None:
        """Make sure before training that the shared parameters can be seen in the features.

        Raises:
            UserError: they cannot.
        """
        rng = generator(self._config.seed, "probe")
        nudged = {
            name: (array + rng.normal(0, _NUDGE, array.shape)).astype(array.dtype)
            for name, array in self._initial.items()
        }
        if np.allclose(self._features(nudged), self._features(self._initial), atol=1e-7):
            raise UserError(
                f"The strategy {self._config.strategy!r} measures drift by the text features of class names, and what "
                f"the method {self._config.method!r} shares does not change them; leave it out."
            )

    @cached_property
    def _adapter(self) -> Adapter:
        own = {name.lower() for name in self._class_names}
        names = [name for name in probe_names(self._backbone.name) if name.lower() not in own]
        vocabulary = Vocabulary(self._backbone, names, DEFAULT_TEMPLATES)
        seed = derived_seed(self._config.seed, "adapter", "server")
        options = self._method.parse_options(self._config.method_options)
        return self._method.adapter(vocabulary, options, torch.Generator().manual_seed(seed), Seat(self._config.seed))

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
