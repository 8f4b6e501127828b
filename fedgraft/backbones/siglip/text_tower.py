"""The text tower of a `SiglipModel` (Zhai et al. 2023) with what can be shared exactly.

The tower is bidirectional and pools the last position; a text is padded to all positions, and padding takes part in
attention. So nearly every position of every class has to be computed. What is not: in the first layer the projections
of equal inputs are computed once for all classes; before layers with deep prompts the context, which they replace, is
not computed, and they have keys and values once for all classes; of the last layer only the pooled position is
computed, without keys and values. The features equal those of the plain forward pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import ClassTokens, TextTower
from fedgraft.backbones.deltas import Changed, Deltas, branched, linear, mlp
from fedgraft.backbones.siglip.attention import attend_once, whole_weight
from fedgraft.backbones.siglip.layout import Layout, layouts
from fedgraft.backbones.siglip.tokens import SiglipTokens
from fedgraft.core.errors import UserError

_STATES_PER_PASS = 1024
"""Positions that go through the layers together: their activations stay in the processor's cache."""
_VALUES_KEPT = 150_000_000
"""Positions times width times layers up to which activations are kept for the backward pass, some 6 GB; those of larger
passes, such as 1,000 classes, are computed again, a group of classes at a time."""


class SiglipTextTower(TextTower):
    """The text half of a `SiglipModel`; reads the modules' own weights and holds no copy of them."""

    start_tokens = 0

    def __init__(self, model: Any, tokens: SiglipTokens) -> None:
        config = model.config.text_config
        self.width = int(config.hidden_size)
        self.max_tokens = int(config.max_position_embeddings)
        self._heads = int(config.num_attention_heads)
        self._tower: Any = model.text_model
        self._tokens = tokens
        self._device = model.text_model.head.weight.device
        self._modules = {f"text_model.{name}": module for name, module in model.text_model.named_modules()}

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Names as they follow a context, with a full stop where the model knows one, and the end token."""
        return self._padded(self._tokens.names(names))

    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """The longest common prefix, without the end token, as a context."""
        rows = self._tokens.texts(texts)
        first, last = min(rows), max(rows)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        common = min(common, min(map(len, rows)) - 1)
        return self._embedded(rows[0][:common]), self._padded([row[common:] for row in rows])

    def embed_words(self, text: str) -> Tensor:
        """Token embeddings of a text, such as an initial context."""
        return self._embedded(self._tokens.words(text))

    def _embedded(self, ids: list[int]) -> Tensor:
        whole = torch.tensor(ids, dtype=torch.long, device=self._device)
        embedded: Tensor = self._tower.embeddings.token_embedding(whole)
        return embedded.float()

    def _padded(self, rows: list[list[int]]) -> ClassTokens:
        longest = max(map(len, rows))
        ids = [row + [self._tokens.padding] * (longest - len(row)) for row in rows]
        ends = [len(row) - 1 for row in rows]
        return ClassTokens(torch.tensor(ids, device=self._device), torch.tensor(ends, device=self._device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts without a context, padded to all positions."""
        empty = torch.empty(1, 0, self.width, device=self._device)
        rows = self._tokens.texts(texts)
        batches = [self._padded(rows[begin : begin + 256]) for begin in range(0, len(rows), 256)]
        return torch.cat([self.encode_prompts(empty, batch)[0] for batch in batches])

    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        deep: Tensor | None = None,
        placement: Placement = "before",
        deltas: Deltas | None = None,
    ) -> Tensor:
        """Every class with its context and its padding; a text begins with the context or the name, without a start.

        Raises:
            UserError: context and class name together exceed the tower's positions, or `deep` has too many layers or
                a context for each class beside it.
        """
        n_ctx, each_class = context.shape[-2], context.dim() == 4
        depth = len(self._tower.encoder.layers)
        total = n_ctx + classes.ids.shape[1]
        if total > self.max_tokens:
            raise UserError(
                f"A context of {n_ctx} vectors and the longest class name need {total} positions, but "
                f"the text tower has {self.max_tokens}. Shorten the context (n_ctx) or the class names."
            )
        if deep is not None and each_class:
            raise UserError("Deep prompts need a context that all classes share; leave class_context out.")
        if deep is not None and deep.shape[1] >= depth:
            raise UserError(
                f"Deep prompts for {deep.shape[1]} layers after the first do not fit into a text tower of "
                f"{depth} layers; use at most {depth - 1}."
            )
        changed = {self._modules[name]: delta for name, delta in (deltas or {}).items()}
        dtype = self._tower.head.weight.dtype
        context, deep = context.to(dtype), deep if deep is None else deep.to(dtype)
        size = max(1, _STATES_PER_PASS // (self.max_tokens * len(context)))
        groups = layouts(
            classes,
            placement,
            n_ctx,
            each_class,
            self.max_tokens,
            self._tokens.stop,
            self._tokens.padding,
            size,
        )
        contexts = torch.split(context, size, dim=1) if each_class else [context] * len(groups)
        values = len(context) * len(classes.ids) * self.max_tokens * self.width * depth
        keep = values <= _VALUES_KEPT or not torch.is_grad_enabled()
        encode = self._encode if keep else partial(checkpoint, self._encode, use_reentrant=False)
        encoded = [encode(own, group, deep, changed) for own, group in zip(contexts, groups, strict=True)]
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)

    def _encode(self, context: Tensor, where: Layout, deep: Tensor | None, changed: Changed) -> Tensor:
        """Features (N, C, dim) of one group of classes."""
        embeddings, layers = self._tower.embeddings, self._tower.encoder.layers
        places = embeddings.position_embedding.weight
        n_ctx, replaced = context.shape[-2], 0 if deep is None else deep.shape[1]
        vectors = context.flatten(1, -2)[:, where.context] + places[where.context_positions]
        words = embeddings.token_embedding(where.tokens) + places[where.positions]
        states = torch.cat([vectors, words.expand(len(context), -1, -1)], dim=1)
        rows: Tensor | None = where.inputs
        for index, layer in enumerate(layers):
            if deep is not None and 1 <= index <= replaced:
                states, rows = torch.cat([deep[:, index - 1], states], dim=1), where.replaced
            if index == len(layers) - 1:
                pooled = self._last_layer(layer, states, rows, where.count, changed)
                break
            dropped = n_ctx if index < replaced else 0
            states, rows = self._layer(layer, states, rows, where.count, dropped, changed), None
        return F.normalize(self._tower.head(self._tower.final_layer_norm(pooled)).float(), dim=-1)

    # One layer: states (N, S, width), and the row of each class's columns among the S, (C, P); None if S is C x P ----

    def _layer(
        self, layer: Any, states: Tensor, rows: Tensor | None, count: int, dropped: int, changed: Changed
    ) -> Tensor:
        """The layer's output at all columns but the first `dropped`, (N, C x (P - dropped), width)."""
        attention = layer.self_attn
        normed = layer.layer_norm1(states)
        queries = _columns(linear(attention.q_proj, normed, changed), rows, count)[:, :, dropped:]
        keys = _columns(linear(attention.k_proj, normed, changed), rows, count)
        values = _columns(linear(attention.v_proj, normed, changed), rows, count)
        mixed = F.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        mixed = mixed.transpose(-3, -2).reshape(len(states), -1, self.width)
        before = _columns(states, rows, count)[:, :, dropped:].flatten(1, 2)
        out: Tensor = before + linear(attention.out_proj, mixed, changed)
        out = out + mlp(layer.mlp, layer.layer_norm2(out), changed)
        if layer not in changed:
            return out
        return branched(layer, out, _columns(normed, rows, count)[:, :, dropped:].flatten(1, 2), changed)

    def _last_layer(self, layer: Any, states: Tensor, rows: Tensor | None, count: int, changed: Changed) -> Tensor:
        """The last layer's output at the pooled position only, (N, C, width)."""
        attention = layer.self_attn
        every = _columns(layer.layer_norm1(states), rows, count)
        mixed = attend_once(
            linear(attention.q_proj, every[:, :, -1], changed),
            every,
            whole_weight(attention.k_proj, changed),
            whole_weight(attention.v_proj, changed),
            attention.v_proj.bias,
            self._heads,
        )
        before = _columns(states, rows if rows is None else rows[:, -1:], count)[:, :, -1]
        out: Tensor = before + linear(attention.out_proj, mixed, changed)
        return branched(layer, out + mlp(layer.mlp, layer.layer_norm2(out), changed), every[:, :, -1], changed)

    def _split(self, states: Tensor) -> Tensor:
        """(N, C, P, width) to (N x C, heads, P, width / heads)."""
        return states.flatten(0, 1).view(-1, states.shape[2], self._heads, self.width // self._heads).transpose(1, 2)


def _columns(states: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """(N, S, width) to (N, C, P, width)."""
    if rows is None:
        return states.view(len(states), count, -1, states.shape[-1])
    return states.index_select(1, rows.flatten()).view(len(states), *rows.shape, states.shape[-1])
