"""Text towers of BERT's shape (Devlin et al. 2019): BERT, RoBERTa and relatives with a pooling and a projection."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.bert.bidirectional_tower import BidirectionalTextTower
from fedgraft.backbones.bert.blocks import PostNormBlocks
from fedgraft.backbones.bert.prompt_layout import Frame, PromptLayout
from fedgraft.backbones.clip.text_tower import cleaned

Pooling = Literal["class", "pooler", "mean", "words"]
"""The start token's state, the same through BERT's pooler (dense, tanh), or the mean of all tokens or of all but the
start and the end token."""


class BertTextTower(BidirectionalTextTower):
    """A BERT, RoBERTa or XLM-RoBERTa model with its pooling and projection; holds no copy of their weights.

    Args:
        model: Hugging Face's `BertModel` or one of the same modules.
        tokenizer: of Hugging Face, with a start (CLS) and an end (SEP) token.
        pooling: how the tokens become one vector.
        projection: from pooled states (..., width) to (..., dim); None for none.
        prefix: what the names of the model's maps begin with, such as "text_model.".
        context_length: the most tokens of a prompt; as many as there are positions if None.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pooling: Pooling,
        projection: nn.Module | None = None,
        prefix: str = "",
        context_length: int | None = None,
    ) -> None:
        frame, end = Frame(int(tokenizer.cls_token_id)), int(tokenizer.sep_token_id)
        pooled: Literal["first"] | None = "first" if pooling in ("class", "pooler") else None
        super().__init__(model, PostNormBlocks(model), tokenizer, frame, end, pooled, prefix, context_length)
        self._tower, self._pooling, self._projection = model, pooling, projection

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """The plain forward pass in batches, each padded to its longest text."""
        parts = []
        for begin in range(0, len(texts), 256):
            batch = [cleaned(text) for text in texts[begin : begin + 256]]
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            states = self._tower(input_ids=ids, attention_mask=mask).last_hidden_state
            parts.append(self._projected_features(self._mean(states, mask.bool()) if self._of_many else states[:, 0]))
        return torch.cat(parts)

    @property
    def _of_many(self) -> bool:
        return self._pooled is None

    def _features(self, states: Tensor, layout: PromptLayout) -> Tensor:
        """Unit-norm features (N, C, dim)."""
        return self._projected_features(self._mean(layout.padded(states), layout.visible) if self._of_many else states)

    def _mean(self, states: Tensor, visible: Tensor) -> Tensor:
        """The mean (..., width) of states (..., B, L, width) where visible (B, L)."""
        if self._pooling == "words":
            visible = visible & visible.roll(-1, dims=1)  # not the end token
            visible[:, 0] = visible[:, -1] = False
        summed = (states * visible[..., None]).sum(-2)
        return summed / visible.sum(1, keepdim=True).clamp(min=1)

    def _projected_features(self, pooled: Tensor) -> Tensor:
        """Unit-norm features in float32 from pooled states (..., width)."""
        if self._pooling == "pooler":
            pooler = self._tower.pooler
            pooled = pooler.activation(pooler.dense(pooled))
        projected = pooled if self._projection is None else self._projection(pooled)
        return F.normalize(projected.float(), dim=-1)
