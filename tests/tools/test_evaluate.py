"""The promise of the embedded backbone's model card, with room."""

from pathlib import Path

import pytest

from fedgraft.backbones import Backbone
from fedgraft.backbones.loading import mini_folder
from tools.mini.evaluate import zero_shot


@pytest.mark.slow
def test_the_embedded_backbone_is_small_and_reads_handwriting_that_it_never_saw(mini: Backbone, tmp_path: Path) -> None:
    """70 % of the digits zero-shot, in at most 10 MB."""
    assert sum(path.stat().st_size for path in mini_folder().iterdir()) <= 10_000_000
    assert zero_shot(mini, "digits", tmp_path)["all"] >= 70
