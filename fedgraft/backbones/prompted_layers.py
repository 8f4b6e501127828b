"""The layers of an image transformer from one on, with visual prompts before them (Jia et al. 2022).

Prompts stand behind the other tokens and have no position, as published code for CLIP puts them (Khattak et al. 2023).
Of the last layer only the rows that are pooled are computed; nor is the output of prompts that the next layer replaces.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedgraft.backbones.abilities import require_layers
from fedgraft.backbones.deltas import Changed


class PromptedLayers(ABC):
    """What image towers of equal layers share; how a layer computes and what is pooled are each tower's own."""

    _layers: Sequence[Any]
    """In their order; tokens have one width in all of them."""

    @abstractmethod
    def _layer(self, layer: Any, states: Tensor, rows: int, changed: Changed) -> Tensor:
        """A layer's output for the first rows (B, rows, width) of its input (B, T, width)."""

    @abstractmethod
    def _normed_prompts(self, prompts: Tensor) -> Tensor:
        """Prompts before the first layer, as the other tokens are normalized there."""

    def _below(self, hidden: Tensor, layers: int) -> Tensor:
        """What the first layers make of their input, (B, T, width)."""
        for layer in self._layers[:layers]:
            hidden = self._layer(layer, hidden, hidden.shape[1], {})
        return hidden

    def _above(self, hidden: Tensor, first: int, changed: Changed, prompts: Tensor | None, pooled: int) -> Tensor:
        """The first `pooled` rows behind the last layer, (B, pooled, width), from the input of layer `first`.

        Args:
            prompts: (B or 1, depth, n, width), as in `Backbone.finish_images`.

        Raises:
            UserError: there are prompts for more layers than follow.
        """
        tokens, depth, total = hidden.shape[1], 0 if prompts is None else prompts.shape[1], len(self._layers)
        require_layers(total, first, depth)
        for index in range(first, total):
            if prompts is not None and index - first < depth:
                hidden = self._prompted(hidden[:, :tokens], prompts[:, index - first], index)
            replaced = index + 1 - first < depth
            rows = pooled if index == total - 1 else tokens if replaced else hidden.shape[1]
            hidden = self._layer(self._layers[index], hidden, rows, changed)
        return hidden

    def _between(self, hidden: Tensor, first: int, end: int, prompts: Tensor) -> Tensor:
        """The input of layer `end` from that of layer `first`, with prompts (B or 1, end - first, n, width) between."""
        tokens = hidden.shape[1]
        for index in range(first, end):
            prompted = self._prompted(hidden, prompts[:, index - first], index)
            hidden = self._layer(self._layers[index], prompted, tokens, {})
        return hidden

    def _prompted(self, hidden: Tensor, prompts: Tensor, index: int) -> Tensor:
        """The input of a layer with prompts behind its tokens."""
        own = prompts.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        return torch.cat([hidden, self._normed_prompts(own) if index == 0 else own], dim=1)
