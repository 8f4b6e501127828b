"""A small SigLIP with SentencePiece and a small SigLIP 2 with a tokenizer of Gemma's kind, made without a network."""

import json
import shutil
from pathlib import Path

import pytest

from fedgraft.backbones.siglip.sample import write_sample
from tests.backbones.siglip.pieces import sentencepiece_model


@pytest.fixture(scope="session")
def siglip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's sample."""
    folder = tmp_path_factory.mktemp("siglip2")
    write_sample(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(siglip2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same towers behind a SentencePiece model with the special tokens of the published one."""
    folder = tmp_path_factory.mktemp("siglip") / "model"
    shutil.copytree(siglip2_folder, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(sentencepiece_model(350))
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **special}))
    return folder


@pytest.fixture(params=["siglip", "siglip2"], scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found
