"""The two encoders with what joins them as one module, whose parameters are a folder's model.safetensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from fedgraft.backbones.photo.image_tower import EfficientNetLite, LiteShape
from fedgraft.backbones.photo.sentence_model import empty_sentence_model
from fedgraft.backbones.photo.text_map import TextMap
from fedgraft.core.errors import UserError

MODEL_TYPE = "fedgraft-photo"


@dataclass(frozen=True)
class PhotoConfig:
    """A folder's config.json.

    Attributes:
        text: of the sentence encoder's `BertModel`.
        dim: of the joint space.
        anchors: sentences of the map between the encoders.
        sharpness: of the map's kernel.
        logit_scale: the factor on cosines.
        image_size: side of the images in pixels.
        context_length: tokens that the text tower takes.
        image: sizes of the image tower.
    """

    text: dict[str, Any]
    dim: int
    anchors: int
    sharpness: float
    logit_scale: float
    image_size: int = 224
    context_length: int = 256
    image: LiteShape = field(default_factory=LiteShape)

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From a folder's config.json; raises UserError if it is malformed."""
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text())
            image = LiteShape.from_json(values.pop("image"))
            del values["model_type"]
            return cls(**values, image=image)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is not a configuration of its family: {reason}") from error


class PhotoModel(nn.Module):
    """Image tower and its projection, text tower and its map."""

    def __init__(self, config: PhotoConfig) -> None:
        super().__init__()
        self.config = config
        self.image_model = EfficientNetLite(config.image)
        self.visual_projection = nn.Linear(config.image.features, config.dim, bias=False)
        self.text_model: Any = empty_sentence_model(config.text)
        self.text_map = TextMap(config.anchors, int(self.text_model.config.hidden_size), config.dim, config.sharpness)
        self.eval().requires_grad_(False)

    def fill(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Load all weights; raises UserError that names one which is missing, not known, or of another shape.

        Args:
            name: of the backbone, for the message.
        """
        own = self.state_dict()
        wrong = [
            f"lacks {len(own.keys() - weights.keys())} weights, such as {key}" for key in own if key not in weights
        ]
        wrong += [f"has weights that its family does not know, such as {key}" for key in weights if key not in own]
        wrong += [
            f"has the weight {key} of shape {tuple(weights[key].shape)}, expected {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in weights and weights[key].shape != tensor.shape
        ]
        if wrong:
            raise UserError(f"The backbone {name!r} {wrong[0]}.")
        self.load_state_dict(weights)
