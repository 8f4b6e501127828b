"""A text tower of BERT's shape (Devlin et al. 2019) with the exact fast path.

The tower is bidirectional: behind the first layer every class has hidden states of its own, even of the start token and
the context. What can be spared is: rows that classes share before the first layer are embedded and projected once,
padding is masked and so left out, and where one token is pooled, only its row of the last layer is computed. The
features equal those of the plain forward pass.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones.backbone import ClassTokens, Placement, TextTower
from fedgraft.backbones.bert.prompt_layout import PromptLayout, prompt_layout
from fedgraft.backbones.clip.text_tower import cleaned
from fedgraft.backbones.deltas import Changed, Deltas, LinearMap, linear
from fedgraft.core.errors import UserError

Pooling = Literal["class", "pooler", "mean", "words"]
"""The start token's state, the same through BERT's pooler (dense, tanh), or the mean of all tokens or of all but the
start and the end token."""

_LEAD = "x"
"""A word in front of a class name while it is tokenized, since many tokenizers split a first word differently."""


class BertTextTower(TextTower):
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
        positions = model.embeddings.position_embeddings
        self._first_position = 0 if positions.padding_idx is None else int(positions.padding_idx) + 1  # RoBERTa's
        room = positions.num_embeddings - self._first_position
        self.width = int(model.config.hidden_size)
        self.max_tokens = min(context_length or room, room)
        self._heads = int(model.config.num_attention_heads)
        self._start, self._end = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)
        self._tower, self._tokenizer, self._pooling, self._projection = model, tokenizer, pooling, projection
        self._device = positions.weight.device
        self._modules = {f"{prefix}{name}": module for name, module in model.named_modules()}
        self._lead = tokenizer(_LEAD, add_special_tokens=False)["input_ids"]

    def linear_maps(self) -> dict[str, LinearMap]:
        """`Backbone.linear_maps` of the text tower: the maps of attention and MLP in every layer."""
        numbers = {id(module): n for n, layer in enumerate(self._tower.encoder.layer) for module in layer.modules()}
        return {
            name: LinearMap(numbers[id(module)], module.weight)
            for name, module in self._modules.items()
            if id(module) in numbers and isinstance(module, nn.Linear)
        }

    # Tokens --------------------------------------------------------------------------------------------------------

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Names followed by a full stop and the end token, as they are tokenized behind other words."""
        return self._padded_rows([[*self._following(f"{cleaned(name)}."), self._end] for name in names])

    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """The longest common prefix, without the end token, as a context."""
        written = [cleaned(text) for text in texts]
        rows = self._tokenizer(written, truncation=True, max_length=self.max_tokens)["input_ids"]
        rows = [row[1:] for row in rows]
        first, last = min(rows), max(rows)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        common = min(common, min(map(len, rows)) - 1)
        return self._embedded(rows[0][:common]), self._padded_rows([row[common:] for row in rows])

    def embed_words(self, text: str) -> Tensor:
        """Word embeddings of a text, such as an initial context."""
        return self._embedded(self._tokenizer(cleaned(text), add_special_tokens=False)["input_ids"])

    def _following(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(f"{_LEAD} {text}", add_special_tokens=False)["input_ids"]
        return ids[len(self._lead) :]

    def _padded_rows(self, rows: list[list[int]]) -> ClassTokens:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows], device=self._device)
        return ClassTokens(ids, torch.tensor([len(row) - 1 for row in rows], device=self._device))

    def _embedded(self, ids: list[int]) -> Tensor:
        whole = torch.tensor(ids, dtype=torch.long, device=self._device)
        embedded: Tensor = self._tower.embeddings.word_embeddings(whole)
        return embedded.float()

    # Texts ---------------------------------------------------------------------------------------------------------

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
            parts.append(self._features(states[:, 0] if self._at_first else self._mean(states, mask.bool())))
        return torch.cat(parts)

    @property
    def _at_first(self) -> bool:
        return self._pooling in ("class", "pooler")

    def _mean(self, states: Tensor, visible: Tensor) -> Tensor:
        """The mean (..., width) of states (..., B, L, width) where visible (B, L)."""
        if self._pooling == "words":
            visible = visible & visible.roll(-1, dims=1)  # not the end token
            visible[:, 0] = visible[:, -1] = False
        summed = (states * visible[..., None]).sum(-2)
        return summed / visible.sum(1, keepdim=True).clamp(min=1)

    def _features(self, pooled: Tensor) -> Tensor:
        """Unit-norm features in float32 from pooled states (..., width)."""
        if self._pooling == "pooler":
            pooler = self._tower.pooler
            pooled = pooler.activation(pooler.dense(pooled))
        projected = pooled if self._projection is None else self._projection(pooled)
        return F.normalize(projected.float(), dim=-1)

    # Prompts -------------------------------------------------------------------------------------------------------

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
        layers: Any = self._tower.encoder.layer
        each_class = context.dim() == 4
        self._check(context.shape[-2], classes, deep, each_class)
        changed = {self._modules[name]: delta for name, delta in (deltas or {}).items()}
        layout = prompt_layout(classes, self._start, context.shape[-2], placement, each_class)
        weight = self._tower.embeddings.word_embeddings.weight
        rows = self._rows(context.to(weight.dtype), layout)
        heads = self._projected_rows(layers[0], rows, layout, changed)
        states = torch.cat([rows[0].expand(len(context), -1, -1), rows[1]], dim=1).index_select(1, layout.rows)
        for index, layer in enumerate(layers):
            last = self._at_first and index == len(layers) - 1
            if index:
                if deep is not None and index <= deep.shape[1]:
                    states = _placed(states, layout.places, deep[:, index - 1].to(weight.dtype))
                heads = self._projected(layer, states, layout, changed, last)
            mixed = self._attended(heads, layout)
            if last:
                states, mixed = states.index_select(1, layout.first), mixed[:, :, 0]
            else:
                mixed = layout.packed(mixed)
            states = self._rest(layer, states, mixed, changed)
        return self._features(states if self._at_first else self._mean(layout.padded(states), layout.visible))

    def _check(self, n_ctx: int, classes: ClassTokens, deep: Tensor | None, each_class: bool) -> None:
        total, depth = 1 + n_ctx + classes.ids.shape[1], len(self._tower.encoder.layer)
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

    def _rows(self, context: Tensor, layout: PromptLayout) -> tuple[Tensor, Tensor]:
        """Embedded rows before the first layer: the fixed ones (1, F, width) and the context's (N, S, width)."""
        embeddings = self._tower.embeddings
        own = context.flatten(1, 2) if context.dim() == 4 else context
        own = own.repeat(1, len(layout.context_positions) // max(1, own.shape[1]), 1)
        words = embeddings.word_embeddings(layout.ids)[None]
        return self._embed(words, layout.positions), self._embed(own, layout.context_positions)

    def _embed(self, words: Tensor, positions: Tensor) -> Tensor:
        embeddings = self._tower.embeddings
        kind = embeddings.token_type_embeddings.weight[0]
        placed = words + kind + embeddings.position_embeddings.weight[positions + self._first_position]
        embedded: Tensor = embeddings.LayerNorm(placed)
        return embedded

    def _projected_rows(
        self, layer: Any, rows: tuple[Tensor, Tensor], layout: PromptLayout, changed: Changed
    ) -> list[Tensor]:
        """The first layer's queries, keys and values, (N, C, L, width) each."""
        attention, prompts = layer.attention.self, len(rows[1])
        found = []
        for module in (attention.query, attention.key, attention.value):
            fixed, own = (linear(module, part, changed) for part in rows)
            each = torch.cat([fixed.expand(prompts, -1, -1), own], dim=1)
            found.append(each[:, layout.padded_rows])
        if self._at_first and len(self._tower.encoder.layer) == 1:
            found[0] = found[0][:, :, :1]
        return found

    def _projected(
        self, layer: Any, states: Tensor, layout: PromptLayout, changed: Changed, last: bool
    ) -> list[Tensor]:
        """A later layer's queries, keys and values; at the last layer the start token's query only."""
        attention = layer.attention.self
        if last:
            queries = linear(attention.query, states.index_select(1, layout.first), changed)[:, :, None]
        else:
            queries = layout.padded(linear(attention.query, states, changed))
        keys, values = (linear(module, states, changed) for module in (attention.key, attention.value))
        return [queries, layout.padded(keys), layout.padded(values)]

    def _attended(self, heads: list[Tensor], layout: PromptLayout) -> Tensor:
        """Attention of (N, C, Q, width) to (N, C, L, width), without padding."""
        prompts, count, queries, width = heads[0].shape
        q, k, v = (part.reshape(prompts * count, -1, self._heads, width // self._heads) for part in heads)
        mask = layout.visible.repeat(prompts, 1)[:, None, None] if layout.padding else None
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return mixed.transpose(1, 2).reshape(prompts, count, queries, width)

    @staticmethod
    def _rest(layer: Any, states: Tensor, mixed: Tensor, changed: Changed) -> Tensor:
        """What follows the attention of a layer: each sum is normalized."""
        attention, intermediate, output = layer.attention.output, layer.intermediate, layer.output
        states = attention.LayerNorm(linear(attention.dense, mixed, changed) + states)
        hidden = intermediate.intermediate_act_fn(linear(intermediate.dense, states, changed))
        normed: Tensor = output.LayerNorm(linear(output.dense, hidden, changed) + states)
        return normed


def _placed(states: Tensor, places: Tensor, context: Tensor) -> Tensor:
    """The packed states (N, T, width) with a context (N, n, width) at the places (C, n)."""
    return states.index_copy(1, places.flatten(), context.repeat(1, len(places), 1))
