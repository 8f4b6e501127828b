"""MiniLM (Wang et al. 2020), a BERT of 6 layers x 384, as trained on pairs of sentences (Reimers & Gurevych 2019)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel, BertTokenizer


def empty_sentence_model(config: Mapping[str, Any]) -> BertModel:
    """A `BertModel` without pooler, frozen and in evaluation mode, whose weights are to be loaded."""
    model = BertModel(BertConfig.from_dict({**config, "attn_implementation": "sdpa"}), add_pooling_layer=False)
    return model.eval().requires_grad_(False)


def sentence_tokenizer(contents: Mapping[str, bytes]) -> Any:
    """The tokenizer in the content of tokenizer.json and tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            Path(folder, name).write_bytes(content)
        return BertTokenizer.from_pretrained(folder)
