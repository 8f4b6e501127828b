"""What several tests use: a cache of their own, and small random backbones with the real tokenizer of `mini`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.loading import mini_folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's feature store."""
    before = os.environ.get("FEDGRAFT_CACHE")
    os.environ["FEDGRAFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FEDGRAFT_CACHE"]
    else:
        os.environ["FEDGRAFT_CACHE"] = before


@pytest.fixture(scope="session")
def mini() -> Backbone:
    """The embedded backbone."""
    return load_backbone("mini")


@pytest.fixture(scope="session")
def random_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder with random weights, three text layers and another width and head count than `mini`."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("random-clip")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(mini_folder() / name, folder / name)
    config = CLIPConfig.from_pretrained(mini_folder())
    config.text_config.update({"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6})
    config.text_config.update({"intermediate_size": 96, "initializer_range": 0.2, "initializer_factor": 3.0})
    config.vision_config.update({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    config.projection_dim = 24
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_clip(random_clip_folder: Path) -> Backbone:
    """The backbone of `random_clip_folder`."""
    return load_backbone(str(random_clip_folder))
