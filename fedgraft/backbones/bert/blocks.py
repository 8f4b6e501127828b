"""The layers of a bidirectional text tower, as Hugging Face's modules hold them: their norms and their maps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fedgraft.backbones.deltas import Changed, linear, mlp


class Blocks(ABC):
    """Embeddings and layers; reads the modules' own weights and holds no copy of them.

    Attributes:
        layers: from the first to the last.
        words: the embedding of tokens.
        heads: of every layer's attention.
        positions: how many tokens a sequence may have.
        map_names: see `Backbone.map_names`.
    """

    layers: Sequence[Any]
    words: nn.Embedding
    heads: int
    positions: int
    map_names: Mapping[str, str] = {}

    @abstractmethod
    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """The input of the first layer from word embeddings (..., S, width) at positions (S,)."""

    @abstractmethod
    def attention_maps(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The maps to queries, keys and values."""

    @abstractmethod
    def before_attention(self, layer: Any, states: Tensor) -> Tensor:
        """What a layer's attention reads of its input."""

    @abstractmethod
    def after_attention(self, layer: Any, states: Tensor, mixed: Tensor, changed: Changed) -> Tensor:
        """A layer's output from its input and the mixed values, both (N, T, width)."""


class PostNormBlocks(Blocks):
    """BERT's (Devlin et al. 2019) and RoBERTa's (Liu et al. 2019): each sum is normalized.

    Args:
        model: Hugging Face's `BertModel` or one of the same modules.
    """

    map_names = {
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "out_proj": "attention.output.dense",
        "fc1": "intermediate.dense",
    }  # fc2 is `output.dense`, which PEFT takes for both outputs

    def __init__(self, model: Any) -> None:
        self.layers, self.heads = model.encoder.layer, int(model.config.num_attention_heads)
        self._embeddings = model.embeddings
        self.words = model.embeddings.word_embeddings
        places = model.embeddings.position_embeddings
        self._first = 0 if places.padding_idx is None else int(places.padding_idx) + 1  # RoBERTa's first position
        self.positions = places.num_embeddings - self._first

    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """The normalized sum of word, position and first token type."""
        kind = self._embeddings.token_type_embeddings.weight[0]
        places = self._embeddings.position_embeddings.weight[positions + self._first]
        embedded: Tensor = self._embeddings.LayerNorm(words + kind + places)
        return embedded

    def attention_maps(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Query, key and value."""
        attention = layer.attention.self
        return attention.query, attention.key, attention.value

    def before_attention(self, layer: Any, states: Tensor) -> Tensor:
        """The input itself."""
        return states

    def after_attention(self, layer: Any, states: Tensor, mixed: Tensor, changed: Changed) -> Tensor:
        """Two sums, each with its norm behind it."""
        attention, intermediate, output = layer.attention.output, layer.intermediate, layer.output
        states = attention.LayerNorm(linear(attention.dense, mixed, changed) + states)
        hidden = intermediate.intermediate_act_fn(linear(intermediate.dense, states, changed))
        normed: Tensor = output.LayerNorm(linear(output.dense, hidden, changed) + states)
        return normed


class PreNormBlocks(Blocks):
    """CLIP's (Radford et al. 2021), with the norms before attention and MLP.

    Args:
        model: Hugging Face's `CLIPTextModel`, whose own forward is causal.
    """

    def __init__(self, model: Any) -> None:
        self.layers, self.heads = model.encoder.layers, int(model.config.num_attention_heads)
        self.words = model.embeddings.token_embedding
        self._places = model.embeddings.position_embedding
        self.positions = int(self._places.num_embeddings)

    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """The sum of word and position."""
        embedded: Tensor = words + self._places.weight[positions]
        return embedded

    def attention_maps(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Query, key and value."""
        attention = layer.self_attn
        return attention.q_proj, attention.k_proj, attention.v_proj

    def before_attention(self, layer: Any, states: Tensor) -> Tensor:
        """The normalized input."""
        normed: Tensor = layer.layer_norm1(states)
        return normed

    def after_attention(self, layer: Any, states: Tensor, mixed: Tensor, changed: Changed) -> Tensor:
        """Two sums."""
        states = states + linear(layer.self_attn.out_proj, mixed, changed)
        return states + mlp(layer.mlp, layer.layer_norm2(states), changed)
