"""OpenCLIP's text tower without a causal mask, as MobileCLIP has it (Vasu et al. 2024).

It is CLIP's tower, but every token sees all others, and a text is padded to all positions with padding that takes part
in attention. So padding cannot be left out; it is shared before the first layer only.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.bert.bidirectional_tower import BidirectionalTextTower, special_token
from fedgraft.backbones.bert.blocks import PreNormBlocks
from fedgraft.backbones.bert.prompt_layout import Frame, PromptLayout

_TEXTS_PER_PASS = 64


class PaddedTextTower(BidirectionalTextTower):
    """CLIP's layers, read in both directions, pooled at the end token; holds no copy of their weights.

    Args:
        model: Hugging Face's `CLIPTextModel`.
        tokenizer: CLIP's.
        projection: from the end token's state (..., width) to (..., dim).
        padding: ID of the padding that is read.
    """

    def __init__(self, model: Any, tokenizer: Any, projection: nn.Module, prefix: str = "", padding: int = 0) -> None:
        blocks = PreNormBlocks(model)
        frame = Frame(special_token(tokenizer, "bos"), blocks.positions, padding)
        super().__init__(model, blocks, tokenizer, frame, special_token(tokenizer, "eos"), "end", prefix)
        self._norm, self._projection = model.final_layer_norm, projection

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts without a context."""
        empty = torch.empty(1, 0, self.width, device=self._device)
        rows = self._rows_of_texts(texts)
        batches = [rows[begin : begin + _TEXTS_PER_PASS] for begin in range(0, len(rows), _TEXTS_PER_PASS)]
        return torch.cat([self.encode_prompts(empty, self._class_tokens(batch))[0] for batch in batches])

    def _features(self, states: Tensor, layout: PromptLayout) -> Tensor:
        """Unit-norm features (N, C, dim)."""
        return F.normalize(self._projection(self._norm(states)).float(), dim=-1)
