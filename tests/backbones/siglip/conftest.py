"""A small SigLIP with SentencePiece and a small SigLIP 2 with Gemma's kind of tokenizer, both made without a network."""

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from fedgraft.backbones.drift_classes import drift_classes
from fedgraft.backbones.siglip.sample import write_sample


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
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a", *drift_classes("siglip")]),
        model_writer=model,
        vocab_size=350,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **special}))
    return folder


@pytest.fixture(params=["siglip", "siglip2"], scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found
