"""Fixtures that the contract tests need; a `conftest.py` takes them over with an import."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.config.registry import BACKBONES


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's feature store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """Small matrices gain nothing by many threads, and lose much where the machine is busy."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini() -> Backbone:
    """The embedded backbone."""
    return load_backbone("mini")


@pytest.fixture(scope="session")
def random_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder with random weights, of another width, depth and head count than `mini`."""
    folder = tmp_path_factory.mktemp("random-clip")
    sample = BACKBONES.load("clip").sample
    assert sample is not None
    sample(folder)
    return folder


@pytest.fixture(scope="session")
def random_clip(random_clip_folder: Path) -> Backbone:
    """The backbone of `random_clip_folder`."""
    return load_backbone(str(random_clip_folder))
