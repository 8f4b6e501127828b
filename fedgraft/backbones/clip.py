"""CLIP backbones (Radford et al. 2021) from Hugging Face folders, with the exact fast text path.

The text tower is causal. What precedes the class name is the same for every class, so the start token and the
context go through the layers once and every class attends to their keys and values; what follows the end token
cannot matter, so only as many positions are computed as each class name has tokens, whatever the longest has; and of
the last layer only the end token's output is used, so only that row is computed. The features are those of the plain
forward.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel

from fedgraft.backbones.base import Backbone, ClassTokens, Placement, Precision, TextTower
from fedgraft.backbones.tower import VisionTower, tower_of_clip
from fedgraft.errors import UserError

_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


class ClipBackbone(Backbone):
    """A `CLIPModel` with its tokenizer and image processor."""

    def __init__(
        self,
        name: str,
        model: CLIPModel,
        tokenizer: Any,
        processor: Any,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.precision, self.device = name, precision, torch.device(device)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.fingerprint = _fingerprint(model, tokenizer)
        self._model = model.eval().requires_grad_(False).to(self.device, getattr(torch, precision))
        self._processor = processor
        self.text = ClipTextTower(self._model, tokenizer)
        self.dim = int(model.config.projection_dim)
        self.preprocessing = hashlib.sha256(_canonical(processor.to_dict()).encode()).hexdigest()

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values as the folder's image processor prepares them."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Projected and normalized image features."""
        weights = self._model.visual_projection.weight
        pooled = self._model.vision_model(pixel_values=pixels.to(weights)).pooler_output
        return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's configuration, as in preprocessor_config.json."""
        config: dict[str, Any] = json.loads(self._processor.to_json_string())
        return config

    def vision_tower(self) -> VisionTower:
        """A copy of the image tower; of weights that were loaded in another precision, what that left of them."""
        return tower_of_clip(self._model)


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

    def tokenize_names(self, names: Sequence[str]) -> ClassTokens:
        """Names followed by a full stop and the end token, padded with end tokens."""
        rows = [self._tokenizer(f"{name}.", add_special_tokens=False)["input_ids"] + [self._end] for name in names]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows], device=self._device)
        return ClassTokens(ids, torch.tensor([len(row) - 1 for row in rows], device=self._device))

    def embed_words(self, text: str) -> Tensor:
        """Token embeddings of a text, such as an initial context."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        embedded: Tensor = self._tower.embeddings.token_embedding(torch.tensor(ids, device=self._device))
        return embedded.float()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """The plain forward in batches, as long as the longest text."""
        parts = []
        for begin in range(0, len(texts), 256):
            batch = list(texts[begin : begin + 256])
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            pooled = self._tower(input_ids=ids, attention_mask=mask).pooler_output
            parts.append(F.normalize(self._projection(pooled).float(), dim=-1))
        return torch.cat(parts)

    def encode_prompts(
        self, context: Tensor, classes: ClassTokens, deep: Tensor | None = None, placement: Placement = "before"
    ) -> Tensor:
        """The shared prefix once, then every class behind it; a context behind the name leaves the start token shared.

        Raises:
            UserError: context and class name together are longer than the tower's positions, or deep has too many.
        """
        embeddings = self._tower.embeddings
        layers: Any = self._tower.encoder.layers
        prompts, n_ctx = context.shape[:2]
        total = 1 + n_ctx + classes.ids.shape[1]
        if total > self.max_tokens:
            raise UserError(
                f"A context of {n_ctx} vectors and the longest class name need {total} positions; "
                f"the text tower has {self.max_tokens}. Shorten the context (n_ctx) or the class names."
            )
        if deep is not None and deep.shape[1] >= len(layers):
            raise UserError(
                f"Deep prompts for {deep.shape[1]} layers behind the first do not fit into a text tower of "
                f"{len(layers)}; give at most {len(layers) - 1}."
            )
        positions = embeddings.position_embedding.weight
        context = context.to(positions.dtype)
        deep = deep if deep is None else deep.to(positions.dtype)
        start = embeddings.token_embedding.weight[self._start].expand(prompts, 1, -1)
        if placement == "before":
            prefix, places = torch.cat([start, context], dim=1) + positions[: 1 + n_ctx], None
        else:
            prefix, (classes, places) = start + positions[:1], _spread(classes, n_ctx)
        first = prefix.shape[1]
        names = embeddings.token_embedding(classes.ids)
        behind = torch.arange(first, first + classes.ids.shape[1], device=self._device).expand(len(names), -1)
        suffix = names.flatten(0, 1)[classes.kept].expand(prompts, -1, -1)
        if places is not None:
            suffix = _placed(suffix, places, context)
        suffix = suffix + positions[behind.flatten()[classes.kept]]
        for index, layer in enumerate(layers):
            if deep is not None and 1 <= index <= deep.shape[1]:
                if places is None:
                    prefix = torch.cat([prefix[:, :1], deep[:, index - 1]], dim=1)
                else:
                    suffix = _placed(suffix, places, deep[:, index - 1])
            if index < len(layers) - 1:
                prefix, suffix = self._layer(layer, prefix, suffix, classes)
        ends = self._last_layer(layers[-1], prefix, suffix, classes)
        pooled = self._tower.final_layer_norm(ends)
        return F.normalize(self._projection(pooled).float(), dim=-1)

    # One layer: prefix (N, P, width) and suffix (N, T, width), the tokens of all names behind one another -------

    def _layer(self, layer: Any, prefix: Tensor, suffix: Tensor, classes: ClassTokens) -> tuple[Tensor, Tensor]:
        attention = layer.self_attn
        normed_prefix, normed_suffix = layer.layer_norm1(prefix), layer.layer_norm1(suffix)
        keys, values = attention.k_proj(normed_prefix), attention.v_proj(normed_prefix)
        mixed = F.scaled_dot_product_attention(
            self._split(attention.q_proj(normed_prefix)), self._split(keys), self._split(values), is_causal=True
        )
        new_prefix = prefix + attention.out_proj(mixed.transpose(-3, -2).flatten(-2))
        new_prefix = new_prefix + layer.mlp(layer.layer_norm2(new_prefix))

        length = classes.ids.shape[1]
        attended = self._attend(
            _padded(attention.q_proj(normed_suffix), classes),
            keys,
            values,
            _padded(attention.k_proj(normed_suffix), classes),
            _padded(attention.v_proj(normed_suffix), classes),
            torch.ones(length, length, dtype=torch.bool, device=suffix.device).tril(),
        )
        new_suffix = suffix + attention.out_proj(_packed(attended, classes))
        return new_prefix, new_suffix + layer.mlp(layer.layer_norm2(new_suffix))

    def _last_layer(self, layer: Any, prefix: Tensor, suffix: Tensor, classes: ClassTokens) -> Tensor:
        """The last layer's output at each class's end token only: (N, C, width)."""
        attention = layer.self_attn
        normed_prefix, normed_suffix = layer.layer_norm1(prefix), layer.layer_norm1(suffix)
        visible = torch.arange(classes.ids.shape[1], device=suffix.device) <= classes.ends[:, None]
        attended = self._attend(
            attention.q_proj(normed_suffix[:, classes.last])[:, :, None],
            attention.k_proj(normed_prefix),
            attention.v_proj(normed_prefix),
            _padded(attention.k_proj(normed_suffix), classes),
            _padded(attention.v_proj(normed_suffix), classes),
            visible[:, None, None],
        )
        out: Tensor = suffix[:, classes.last] + attention.out_proj(attended[:, :, 0])
        residual: Tensor = layer.mlp(layer.layer_norm2(out))
        return out + residual

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
    """(N, T, width) to (N, C, L, width), zero behind each name's end token, which no query of the name sees."""
    prompts, tokens, width = states.shape
    count, length = classes.ids.shape
    if tokens < count * length:
        states = states.new_zeros(prompts, count * length, width).index_copy(1, classes.kept, states)
    return states.view(prompts, count, length, width)


def _packed(states: Tensor, classes: ClassTokens) -> Tensor:
    """(N, C, L, width) to (N, T, width)."""
    flat = states.flatten(1, 2)
    return flat if len(classes.kept) == flat.shape[1] else flat.index_select(1, classes.kept)


@lru_cache(maxsize=16)
def _spread(classes: ClassTokens, n_ctx: int) -> tuple[ClassTokens, Tensor]:
    """Class names with room for a context before their full stop, and where it is among the tokens kept, (C, n_ctx)."""
    count, length = classes.ids.shape
    column = torch.arange(length + n_ctx, device=classes.ids.device).expand(count, -1)
    stop = classes.ends[:, None] - 1
    source = torch.where(column < stop, column, column - n_ctx).clamp(min=0)
    spread = ClassTokens(classes.ids.gather(1, source), classes.ends + n_ctx)
    begins = spread.last - n_ctx - 1
    return spread, begins[:, None] + torch.arange(n_ctx, device=begins.device)


def _placed(suffix: Tensor, places: Tensor, context: Tensor) -> Tensor:
    """The suffix (N, T, width) with the context (N, n_ctx, width) at its places (C, n_ctx)."""
    return suffix.index_copy(1, places.flatten(), context.repeat(1, len(places), 1))


def load_clip(source: str, name: str, precision: Precision, device: torch.device) -> ClipBackbone:
    """Load a Hugging Face folder or id.

    Raises:
        UserError: weights or tokenizer are missing, incomplete or damaged.
    """
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        model, loading = CLIPModel.from_pretrained(
            source,
            attn_implementation="sdpa",
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = CLIPImageProcessorPil.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The backbone {name!r} cannot be loaded: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"The backbone {name!r} lacks {len(missing)} weights, such as {missing[0]}.")
    return ClipBackbone(name, model, tokenizer, processor, precision, device)


def _fingerprint(model: CLIPModel, tokenizer: Any) -> str:
    digest = hashlib.sha256()
    digest.update(_canonical(_stable(model.config.to_dict())).encode())
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    digest.update(_canonical({**words, "padding": None, "truncation": None}).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().flatten().numpy()).cast("B"))
    return digest.hexdigest()


def _stable(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE_KEYS}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
