"""A bidirectional text tower with the exact fast path.

Behind the first layer every class has hidden states of its own, even of the start token and the context. What can be
spared is: tokens that classes share at a position are embedded once and projected once for the first layer, masked
padding is left out, and where one token is pooled, only its row of the last layer is computed. The features equal those
of the plain forward pass.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import ClassTokens, TextTower
from fedgraft.backbones.bert.blocks import Blocks
from fedgraft.backbones.bert.prompt_layout import Frame, PromptLayout, prompt_layout
from fedgraft.backbones.clip.text_tower import cleaned
from fedgraft.backbones.deltas import Changed, Deltas, LinearMap, linear
from fedgraft.core.errors import UserError

_LEAD = "x"
"""A word in front of a class name while it is tokenized, since many tokenizers split a first word differently."""


class BidirectionalTextTower(TextTower):
    """What towers share that read a whole sequence at once.

    Args:
        model: Hugging Face's module with the layers.
        blocks: how its layers are read.
        tokenizer: of Hugging Face; it adds a start and an end token.
        frame: start token, and padding if it is read.
        end: ID of the end token.
        pooled: the token whose state becomes the features; None if several do.
        prefix: what the names of the model's maps begin with, such as "text_model.".
        context_length: the most tokens of a prompt; as many as there are positions if None.
    """

    def __init__(
        self,
        model: Any,
        blocks: Blocks,
        tokenizer: Any,
        frame: Frame,
        end: int,
        pooled: Literal["first", "end"] | None,
        prefix: str = "",
        context_length: int | None = None,
    ) -> None:
        self.width = int(model.config.hidden_size)
        self.max_tokens = min(context_length or blocks.positions, blocks.positions)
        self._blocks, self._tokenizer, self._frame, self._end, self._pooled = blocks, tokenizer, frame, end, pooled
        self._device = blocks.words.weight.device
        self._modules = {f"{prefix}{name}": module for name, module in model.named_modules()}
        self._lead = tokenizer(_LEAD, add_special_tokens=False)["input_ids"]

    def linear_maps(self) -> dict[str, LinearMap]:
        """`Backbone.linear_maps` of the text tower: the maps of attention and MLP in every layer."""
        numbers = {id(module): n for n, layer in enumerate(self._blocks.layers) for module in layer.modules()}
        return {
            name: LinearMap(numbers[id(module)], module.weight)
            for name, module in self._modules.items()
            if id(module) in numbers and isinstance(module, nn.Linear)
        }

    @property
    def map_names(self) -> Mapping[str, str]:
        """`Backbone.map_names` of the text tower."""
        return self._blocks.map_names

    # Tokens --------------------------------------------------------------------------------------------------------

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Names followed by a full stop and the end token, as they are tokenized behind other words."""
        return self._class_tokens([[*self._following(f"{cleaned(name)}."), self._end] for name in names])

    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """The longest common prefix, without the end token, as a context."""
        rows = self._rows_of_texts(texts)
        first, last = min(rows), max(rows)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        common = min(common, min(map(len, rows)) - 1)
        return self._embedded(rows[0][:common]), self._class_tokens([row[common:] for row in rows])

    def embed_words(self, text: str) -> Tensor:
        """Word embeddings of a text, such as an initial context."""
        return self._embedded(self._tokenizer(cleaned(text), add_special_tokens=False)["input_ids"])

    def _rows_of_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token IDs of texts without the start token."""
        written = [cleaned(text) for text in texts]
        rows = self._tokenizer(written, truncation=True, max_length=self.max_tokens)["input_ids"]
        return [row[1:] for row in rows]

    def _following(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(f"{_LEAD} {text}", add_special_tokens=False)["input_ids"]
        return ids[len(self._lead) :]

    def _class_tokens(self, rows: list[list[int]]) -> ClassTokens:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows], device=self._device)
        return ClassTokens(ids, torch.tensor([len(row) - 1 for row in rows], device=self._device))

    def _embedded(self, ids: list[int]) -> Tensor:
        whole = torch.tensor(ids, dtype=torch.long, device=self._device)
        embedded: Tensor = self._blocks.words(whole)
        return embedded.float()

    # Prompts -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _features(self, states: Tensor, layout: PromptLayout) -> Tensor:
        """Unit-norm features (N, C, dim) from the last layer's states: (N, C, width) if pooled, else (N, T, width)."""

    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        deep: Tensor | None = None,
        placement: Placement = "before",
        deltas: Deltas | None = None,
    ) -> Tensor:
        """All sequences at once, packed; before the first layer, what they share once.

        Raises:
            UserError: context and class name together exceed the tower's positions, or `deep` has too many layers or
                a context for each class beside it.
        """
        layers, each_class = self._blocks.layers, context.dim() == 4
        self._check(context.shape[-2], classes, deep, each_class)
        changed = {self._modules[name]: delta for name, delta in (deltas or {}).items()}
        layout = prompt_layout(classes, self._frame, context.shape[-2], placement, each_class)
        dtype = self._blocks.words.weight.dtype
        rows = self._rows(context.to(dtype), layout)
        states = torch.cat([rows[0].expand(len(context), -1, -1), rows[1]], dim=1).index_select(1, layout.rows)
        for index, layer in enumerate(layers):
            pooled = self._pooled_rows(layout) if index == len(layers) - 1 else None
            if index:
                if deep is not None and index <= deep.shape[1]:
                    states = _placed(states, layout.places, deep[:, index - 1].to(dtype))
                heads = self._projected(layer, states, layout, changed, pooled)
            else:
                heads = self._projected_rows(layer, rows, layout, changed, pooled)
            mixed = self._attended(heads, layout)
            if pooled is None:
                mixed = layout.packed(mixed)
            else:
                states, mixed = states.index_select(1, pooled), mixed[:, :, 0]
            states = self._blocks.after_attention(layer, states, mixed, changed)
        return self._features(states, layout)

    def _pooled_rows(self, layout: PromptLayout) -> Tensor | None:
        return {"first": layout.first, "end": layout.ends, None: None}[self._pooled]

    def _check(self, n_ctx: int, classes: ClassTokens, deep: Tensor | None, each_class: bool) -> None:
        total, depth = 1 + n_ctx + classes.ids.shape[1], len(self._blocks.layers)
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

    # One layer -----------------------------------------------------------------------------------------------------

    def _rows(self, context: Tensor, layout: PromptLayout) -> tuple[Tensor, Tensor]:
        """Embedded rows before the first layer: the fixed ones (1, F, width) and the context's (N, S, width)."""
        own = context.flatten(1, 2) if context.dim() == 4 else context
        own = own.repeat(1, len(layout.context_positions) // max(1, own.shape[1]), 1)
        words = self._blocks.words(layout.ids)[None]
        return self._blocks.embed(words, layout.positions), self._blocks.embed(own, layout.context_positions)

    def _projected_rows(
        self, layer: Any, rows: tuple[Tensor, Tensor], layout: PromptLayout, changed: Changed, pooled: Tensor | None
    ) -> list[Tensor]:
        """The first layer's queries, keys and values, (N, C, L, width) each; see `_projected`."""
        prompts, found = len(rows[1]), []
        normed = [self._blocks.before_attention(layer, part) for part in rows]
        for module in self._blocks.attention_maps(layer):
            fixed, own = (linear(module, part, changed) for part in normed)
            each = torch.cat([fixed.expand(prompts, -1, -1), own], dim=1)
            found.append(each.index_select(1, layout.padded_rows.flatten()))
        if pooled is not None:
            found[0] = found[0].index_select(1, layout.kept[pooled])
        return [part.view(prompts, len(layout.visible), -1, self.width) for part in found]

    def _projected(
        self, layer: Any, states: Tensor, layout: PromptLayout, changed: Changed, pooled: Tensor | None
    ) -> list[Tensor]:
        """A later layer's queries, keys and values; of the last layer only the pooled token's query."""
        normed = self._blocks.before_attention(layer, states)
        query, key, value = self._blocks.attention_maps(layer)
        if pooled is None:
            queries = layout.padded(linear(query, normed, changed))
        else:
            queries = linear(query, normed.index_select(1, pooled), changed)[:, :, None]
        return [queries, *(layout.padded(linear(module, normed, changed)) for module in (key, value))]

    def _attended(self, heads: list[Tensor], layout: PromptLayout) -> Tensor:
        """Attention of (N, C, Q, width) to (N, C, L, width), without padding."""
        prompts, count, queries, width = heads[0].shape
        q, k, v = (
            part.reshape(prompts * count, -1, self._blocks.heads, width // self._blocks.heads).transpose(1, 2)
            for part in heads
        )
        mask = layout.visible.repeat(prompts, 1)[:, None, None] if layout.padding else None
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return mixed.transpose(1, 2).reshape(prompts, count, queries, width)


def _placed(states: Tensor, places: Tensor, context: Tensor) -> Tensor:
    """The packed states (N, T, width) with a context (N, n, width) at the places (C, n)."""
    return states.index_copy(1, places.flatten(), context.repeat(1, len(places), 1))
