"""MiniLM (Wang et al. 2020), a BERT of 6 layers x 384 that was trained on pairs of sentences (Reimers & Gurevych 2019)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

CONTEXT_LENGTH = 256
"""Tokens of a text in its training."""


def sentence_model(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> BertModel:
    """Its `BertModel` without pooler, frozen, in eval mode; raises RuntimeError if weights are missing or misshapen."""
    model = BertModel(BertConfig.from_dict({**config, "attn_implementation": "sdpa"}), add_pooling_layer=False)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def sentence_tokenizer(contents: Mapping[str, bytes]) -> Any:
    """Its tokenizer from the content of tokenizer.json and tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            Path(folder, name).write_bytes(content)
        return AutoTokenizer.from_pretrained(folder)
