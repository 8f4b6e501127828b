"""The text tower of a `CLIPModel` (Radford et al. 2021) with the exact fast path.

The text tower is causal. What precedes the class name is the same for every class, so the start token and the context
go through the layers once and every class attends to their keys and values; what follows the end token has no effect,
so for each class name only its own tokens are computed, without padding; and of the last layer only the end token's
output is used, so only that row is computed. The features equal those of the plain forward pass.
"""

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ftfy
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import ClassTokens, TextTower
from fedgraft.backbones.deltas import Changed, Deltas, branched, linear, mlp
from fedgraft.core.errors import UserError


class ClipTextTower(TextTower):
    """The text half of a `CLIPModel`; reads the modules' own weights and holds no copy of them."""

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        config = model.config.text_config
        self.width = int(config.hidden_size)
        self.max_tokens = int(config.max_position_embeddings)
        self._heads = int(config.num_attention_heads)
        self._start, self._end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self._tower = model.text_model
        self._projection = model.text_projection
        self._device = model.text_projection.weight.device
        self._tokenizer = tokenizer
        self._modules = {f"text_model.{name}": module for name, module in model.text_model.named_modules()}

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Names followed by a full stop and the end token, padded with end tokens."""
        texts = [f"{cleaned(name)}." for name in names]
        rows = [
            self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + [self._end] for text in texts
        ]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows], device=self._device)
        return ClassTokens(ids, torch.tensor([len(row) - 1 for row in rows], device=self._device))

    def tokenize_texts(self, texts: Sequence[str]) -> tuple[Tensor, ClassTokens]:
        """The longest common prefix, without the end token, as a context."""
        written = [cleaned(text) for text in texts]
        rows = self._tokenizer(written, truncation=True, max_length=self.max_tokens)["input_ids"]
        rows = [row[1:] for row in rows]
        first, last = min(rows), max(rows)
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        common = min(common, min(map(len, rows)) - 1)
        length = max(map(len, rows)) - common
        padded = [row[common:] + [self._end] * (length - len(row) + common) for row in rows]
        ends = torch.tensor([len(row) - common - 1 for row in rows], device=self._device)
        tokens = ClassTokens(torch.tensor(padded, device=self._device), ends)
        return self._embedded(rows[0][:common]), tokens

    def embed_words(self, text: str) -> Tensor:
        """Token embeddings of a text, such as an initial context."""
        ids = self._tokenizer(cleaned(text), add_special_tokens=False)["input_ids"]
        return self._embedded(ids)

    def _embedded(self, ids: list[int]) -> Tensor:
        whole = torch.tensor(ids, dtype=torch.long, device=self._device)
        embedded: Tensor = self._tower.embeddings.token_embedding(whole)
        return embedded.float()

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
            pooled = self._tower(input_ids=ids, attention_mask=mask).pooler_output
            parts.append(F.normalize(self._projection(pooled).float(), dim=-1))
        return torch.cat(parts)

    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        deep: Tensor | None = None,
        placement: Placement = "before",
        deltas: Deltas | None = None,
    ) -> Tensor:
        """The shared prefix once, then every class after it; what stands behind the name belongs to each class.

        Raises:
            UserError: context and class name together exceed the tower's positions, or `deep` has too many layers or
                a context for each class beside it.
        """
        embeddings = self._tower.embeddings
        layers: Any = self._tower.encoder.layers
        prompts, n_ctx = len(context), context.shape[-2]
        each_class = context.dim() == 4
        total = 1 + n_ctx + classes.ids.shape[1]
        if total > self.max_tokens:
            raise UserError(
                f"A context of {n_ctx} vectors and the longest class name need {total} positions, but "
                f"the text tower has {self.max_tokens}. Shorten the context (n_ctx) or the class names."
            )
        if deep is not None and each_class:
            raise UserError("Deep prompts need a context that all classes share; leave class_context out.")
        if deep is not None and deep.shape[1] >= len(layers):
            raise UserError(
                f"Deep prompts for {deep.shape[1]} layers after the first do not fit into a text tower of "
                f"{len(layers)} layers; use at most {len(layers) - 1}."
            )
        changed = {self._modules[name]: delta for name, delta in (deltas or {}).items()}
        positions = embeddings.position_embedding.weight
        context = context.to(positions.dtype)
        deep = deep if deep is None else deep.to(positions.dtype)
        start = embeddings.token_embedding.weight[self._start].expand(prompts, 1, -1)
        front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
        shared = 0 if each_class else front
        prefix, places = start + positions[:1], None
        if shared:
            prefix = torch.cat([start, context[:, :shared]], dim=1) + positions[: 1 + shared]
        if shared < n_ctx:
            classes, places = _spread(classes, front - shared, n_ctx - front)
        first = prefix.shape[1]
        names = embeddings.token_embedding(classes.ids)
        behind = torch.arange(first, first + classes.ids.shape[1], device=self._device).expand(len(names), -1)
        suffix = names.flatten(0, 1)[classes.kept].expand(prompts, -1, -1)
        if places is not None:
            suffix = _placed(suffix, places, context[..., shared:, :])
        suffix = suffix + positions[behind.flatten()[classes.kept]]
        for index, layer in enumerate(layers):
            if deep is not None and 1 <= index <= deep.shape[1]:
                if shared:
                    prefix = torch.cat([prefix[:, :1], deep[:, index - 1, :shared]], dim=1)
                if places is not None:
                    suffix = _placed(suffix, places, deep[:, index - 1, shared:])
            if index < len(layers) - 1:
                prefix, suffix = self._layer(layer, prefix, suffix, classes, changed)
        ends = self._last_layer(layers[-1], prefix, suffix, classes, changed)
        pooled = self._tower.final_layer_norm(ends)
        return F.normalize(self._projection(pooled).float(), dim=-1)

    # One layer: prefix (N, P, width) and suffix (N, T, width), the tokens of all names one after another ----------

    def _layer(
        self, layer: Any, prefix: Tensor, suffix: Tensor, classes: ClassTokens, changed: Changed
    ) -> tuple[Tensor, Tensor]:
        attention = layer.self_attn
        normed_prefix, normed_suffix = layer.layer_norm1(prefix), layer.layer_norm1(suffix)
        keys = linear(attention.k_proj, normed_prefix, changed)
        values = linear(attention.v_proj, normed_prefix, changed)
        queries = linear(attention.q_proj, normed_prefix, changed)
        mixed = F.scaled_dot_product_attention(
            self._split(queries), self._split(keys), self._split(values), is_causal=True
        )
        new_prefix = prefix + linear(attention.out_proj, mixed.transpose(-3, -2).flatten(-2), changed)
        new_prefix = new_prefix + mlp(layer.mlp, layer.layer_norm2(new_prefix), changed)
        new_prefix = branched(layer, new_prefix, normed_prefix, changed)

        length = classes.ids.shape[1]
        attended = self._attend(
            _padded(linear(attention.q_proj, normed_suffix, changed), classes),
            keys,
            values,
            _padded(linear(attention.k_proj, normed_suffix, changed), classes),
            _padded(linear(attention.v_proj, normed_suffix, changed), classes),
            torch.ones(length, length, dtype=torch.bool, device=suffix.device).tril(),
        )
        new_suffix = suffix + linear(attention.out_proj, _packed(attended, classes), changed)
        new_suffix = new_suffix + mlp(layer.mlp, layer.layer_norm2(new_suffix), changed)
        return new_prefix, branched(layer, new_suffix, normed_suffix, changed)

    def _last_layer(self, layer: Any, prefix: Tensor, suffix: Tensor, classes: ClassTokens, changed: Changed) -> Tensor:
        """The last layer's output at each class's end token only: (N, C, width)."""
        attention = layer.self_attn
        normed_prefix, normed_suffix = layer.layer_norm1(prefix), layer.layer_norm1(suffix)
        visible = torch.arange(classes.ids.shape[1], device=suffix.device) <= classes.ends[:, None]
        attended = self._attend(
            linear(attention.q_proj, normed_suffix[:, classes.last], changed)[:, :, None],
            linear(attention.k_proj, normed_prefix, changed),
            linear(attention.v_proj, normed_prefix, changed),
            _padded(linear(attention.k_proj, normed_suffix, changed), classes),
            _padded(linear(attention.v_proj, normed_suffix, changed), classes),
            visible[:, None, None],
        )
        out: Tensor = suffix[:, classes.last] + linear(attention.out_proj, attended[:, :, 0], changed)
        out = out + mlp(layer.mlp, layer.layer_norm2(out), changed)
        return branched(layer, out, normed_suffix[:, classes.last], changed)

    def _attend(
        self, queries: Tensor, prefix_keys: Tensor, prefix_values: Tensor, keys: Tensor, values: Tensor, visible: Tensor
    ) -> Tensor:
        """Attention of class positions to the shared prefix and to themselves, with one softmax over both.

        Args:
            queries: (N, C, Q, width).
            prefix_keys, prefix_values: (N, P, width), seen by every query.
            keys, values: (N, C, L, width).
            visible: which of the L each query sees, broadcast to (C, heads, Q, L).
        """
        prompts, count, length, width = queries.shape
        q = self._split(queries) * (width // self._heads) ** -0.5
        k, v = self._split(keys), self._split(values)
        pk, pv = self._split(prefix_keys), self._split(prefix_values)
        together = q.transpose(1, 2).reshape(prompts, self._heads, count * length, -1)
        to_prefix = (together @ pk.mT).view(prompts, self._heads, count, length, -1).transpose(1, 2)
        to_self = (q @ k.mT).masked_fill(~visible, float("-inf"))
        weights = torch.cat([to_prefix, to_self], dim=-1).softmax(-1)
        on_prefix, on_self = weights[..., : pk.shape[-2]], weights[..., pk.shape[-2] :]
        shared = on_prefix.transpose(1, 2).reshape(prompts, self._heads, count * length, -1) @ pv
        mixed = on_self @ v + shared.view(prompts, self._heads, count, length, -1).transpose(1, 2)
        return mixed.transpose(-3, -2).reshape(prompts, count, length, width)

    def _split(self, states: Tensor) -> Tensor:
        """(..., T, width) to (..., heads, T, width / heads)."""
        return states.view(*states.shape[:-1], self._heads, -1).transpose(-3, -2)


def _padded(states: Tensor, classes: ClassTokens) -> Tensor:
    """(N, T, width) to (N, C, L, width), zero after each name's end token, where no query of the name looks."""
    prompts, tokens, width = states.shape
    count, length = classes.ids.shape
    if tokens < count * length:
        states = states.new_zeros(prompts, count * length, width).index_copy(1, classes.kept, states)
    return states.view(prompts, count, length, width)


def _packed(states: Tensor, classes: ClassTokens) -> Tensor:
    """(N, C, L, width) to (N, T, width)."""
    flat = states.flatten(1, 2)
    return flat if len(classes.kept) == flat.shape[1] else flat.index_select(1, classes.kept)


def cleaned(text: str) -> str:
    """A text as CLIP's own tokenizer cleans it: Unicode repaired, HTML entities resolved twice, white space reduced."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@lru_cache(maxsize=16)
def _spread(classes: ClassTokens, front: int, back: int) -> tuple[ClassTokens, Tensor]:
    """Class names with room for context vectors before each name and before its full stop.

    Returns:
        The names, and the positions of the vectors among the tokens kept, (C, front + back).
    """
    count, length = classes.ids.shape
    column = torch.arange(length + front + back, device=classes.ids.device).expand(count, -1)
    stop = front + classes.ends[:, None] - 1
    source = torch.where(column < stop, column - front, column - front - back).clamp(min=0)
    spread = ClassTokens(classes.ids.gather(1, source), classes.ends + front + back)
    before = spread.last - spread.ends
    behind = spread.last - back - 1
    device = before.device
    places = [before[:, None] + torch.arange(front, device=device), behind[:, None] + torch.arange(back, device=device)]
    return spread, torch.cat(places, dim=1)


def _placed(suffix: Tensor, places: Tensor, context: Tensor) -> Tensor:
    """The suffix (N, T, width) with a context (N, n, width), or one a class (N, C, n, width), at its places (C, n)."""
    each = context.repeat(1, len(places), 1) if context.dim() == 3 else context.flatten(1, 2)
    return suffix.index_copy(1, places.flatten(), each)
