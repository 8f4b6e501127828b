"""CLIP's tokenizer where a checkpoint comes without one: from an installed open_clip, or from its list of merges."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from fedgraft.backbones.checkpoints import tokenizers
from fedgraft.backbones.checkpoints.tokenizers import find_tokenizer, require_tokenizer, write_tokenizer
from fedgraft.backbones.loading import mini_folder
from tests.backbones.checkpoints.conftest import CLIP_CFG, IMPORT, TEXTS, refusal

SENTENCES = [*TEXTS, "naïve café, 3½ cups - it's 100% \U0001f600", "a\tb  c\n", "don't", "東京", ""]


def test_the_installed_vocabulary_gives_openclips_tokens(open_clip: Any, tmp_path: Path) -> None:
    source = find_tokenizer(None, [], clip_vocabulary=True, layout="CLIP")
    write_tokenizer(source, tmp_path)
    require_tokenizer(tmp_path, 49408, 49407)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), open_clip.tokenizer.SimpleTokenizer()
    assert len(ours) == 49408
    for sentence in SENTENCES:
        assert ours(sentence, add_special_tokens=False)["input_ids"] == theirs.encode(sentence.strip()), sentence
    assert (ours.bos_token_id, ours.eos_token_id, ours.model_max_length) == (49406, 49407, 77)


def test_an_openai_file_with_clips_vocabulary_needs_nothing_else(
    openclip_model: Callable[..., nn.Module], imported: IMPORT, tmp_path: Path
) -> None:
    config = {**CLIP_CFG, "text_cfg": {**CLIP_CFG["text_cfg"], "vocab_size": 49408}}
    torch.save(openclip_model(config).state_dict(), tmp_path / "clip.pt")
    made = imported(tmp_path / "clip.pt", tokenizer=None, activation="gelu")
    assert len(AutoTokenizer.from_pretrained(made.out)) == 49408


def test_without_open_clip_the_way_to_a_tokenizer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokenizers, "_installed_merges", lambda: None)
    sentence = refusal(lambda: find_tokenizer(None, [tmp_path], clip_vocabulary=True, layout="CLIP"))
    assert "--tokenizer" in sentence
    assert "bpe_simple_vocab_16e6.txt.gz" in sentence


def test_the_vocabulary_of_another_model_is_never_taken(tmp_path: Path) -> None:
    """A SigLIP must not be given CLIP's words because open_clip is installed."""
    assert "--tokenizer" in refusal(lambda: find_tokenizer(None, [tmp_path], clip_vocabulary=False, layout="SigLIP"))


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"#version\na b\n"), gzip.compress(b"\xff\xfe")])
def test_a_list_of_merges_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "merges.txt.gz").write_bytes(content)
    assert "merges.txt.gz" in refusal(lambda: write_tokenizer(tmp_path / "merges.txt.gz", tmp_path))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: find_tokenizer(tmp_path, [], clip_vocabulary=True, layout="CLIP"))


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(mini_folder() / name, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    assert "cannot be opened" in refusal(lambda: require_tokenizer(tmp_path, 790, None))
