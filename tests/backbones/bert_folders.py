"""Tokenizers of BERT's and of RoBERTa's kind, made here, and small random models that go with them."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

_WORDS = "a an the photo of red circle seven laptop computer small hollow purple on white x y z w very long class name"
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpieces() -> list[str]:
    """A vocabulary of words and letters, alone and inside a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    return [*_SPECIAL, ".", "-", ",", *dict.fromkeys([*letters, *_WORDS.split()]), *(f"##{one}" for one in letters)]


def bert_tokenizer() -> Any:
    """WordPiece in lower case."""
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(wordpieces())})


def roberta_tokenizer() -> Any:
    """Byte-level pieces whose first piece of a word tells whether a space stands before it."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*specials, *alphabet, "Ġr", "re", "ed", "Ġre", "Ġred"])}
    merges = [("Ġ", "r"), ("r", "e"), ("e", "d"), ("Ġr", "e"), ("Ġre", "d")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **names
    )


def small_text_config(**changes: Any) -> dict[str, Any]:
    """The sizes of a small BERT whose layers tell inputs apart."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return {
        **sizes,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
        "vocab_size": len(wordpieces()),
        **changes,
    }


def bert(**changes: Any) -> Any:
    """A random `BertModel`."""
    torch.manual_seed(0)
    return _spread(BertModel(BertConfig(**small_text_config(**changes))))


def roberta(**changes: Any) -> Any:
    """A random `RobertaModel`, whose positions begin behind the padding's ID."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 270, "pad_token_id": 1, "type_vocab_size": 1, "bos_token_id": 0, "eos_token_id": 2}
    return _spread(RobertaModel(RobertaConfig(**small_text_config(**sizes, **changes))))


def _spread(model: Any) -> Any:
    """Random biases and norms, which are initialized to values that hide whether they are applied."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "LayerNorm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)
