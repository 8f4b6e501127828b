"""What pretraining adds to the corpus: fonts, the words of its captions, and which caption is true of which image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.backbones.mini.corpus import BACKGROUNDS, CHARACTER_OPENINGS, COUNT_WORDS, INKS, OPENINGS, Batch
from fedgraft.data.worlds import glyphs, shapes


def font_files(root: Path) -> list[Path]:
    """Font files below a folder in a fixed order, without the families reserved for evaluation and their relatives."""
    kept_out = (
        "dejavu", "vera", "stix", "cmu", "cmb10", "cmss", "cmtt", "cmti", "cmmi", "hack", "arev", "cmr",
        "latinmodern", "lmroman", "symbol", "aenigma",
    )  # fmt: skip
    files = [path for path in root.rglob("*") if path.suffix.lower() in (".ttf", ".otf")]
    return sorted((p for p in files if not any(word in str(p).lower() for word in kept_out)), key=str)


def font_atlas(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Masks of every usable font: (fonts, 36, 2, 64, 64)."""
    blocks = [block for block in map(glyphs.font_masks, files) if block is not None]
    return np.stack(blocks)


def vocabulary_text() -> list[str]:
    """Captions that hold every word of the corpus, for the tokenizer."""
    words = [*shapes.SHAPES, *(f"{shape}s" for shape in shapes.SHAPES), *shapes.TEXTURES, *INKS, *BACKGROUNDS]
    words += [*glyphs.CHARACTER_NAMES, *"0123456789", "thing", "things", "large", "small", "letter", "digit", "number"]
    words += ["character", "background", "on", "a", "the", ".", *COUNT_WORDS.values()]
    return [*OPENINGS, *CHARACTER_OPENINGS, *words]


def matches(batch: Batch) -> torch.Tensor:
    """(B, B), whether the caption in column j is true of the image in row i."""
    unsaid = batch.said[None] == -1
    return (unsaid | (batch.shown[:, None] == batch.said[None])).all(-1)
