"""What a checkpoint becomes: the contents of a backbone folder, before anything is written."""

from dataclasses import dataclass
from typing import Any

from fedgraft.backbones.checkpoints.weights import Weights


@dataclass(frozen=True, eq=False)
class Conversion:
    """The contents of a folder.

    Attributes:
        layout: what the checkpoint is, in words.
        config: of `config.json`.
        weights: under the names of the model that `config` describes.
        preprocessor: of `preprocessor_config.json`.
        words: the size of the text tower's vocabulary.
        end: the end token that the text tower pools at, if the tokenizer must have it.
        clip_vocabulary: whether the words are those of CLIP.
        own_names: whether the names are those of the checkpoint, which only transformers can match with the model's.
    """

    layout: str
    config: dict[str, Any]
    weights: Weights
    preprocessor: dict[str, Any]
    words: int
    end: int | None = None
    clip_vocabulary: bool = False
    own_names: bool = False
