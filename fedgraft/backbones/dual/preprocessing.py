"""The preprocessing of a folder, whichever of Hugging Face's image processors it names, with the keys of CLIP's."""

import json
from collections.abc import Mapping
from typing import Any

from fedgraft.core.errors import UserError
from fedgraft.device.preprocessing import KEYS, Preprocessing

FILE = "preprocessor_config.json"


def read_preprocessing(source: str) -> dict[str, Any]:
    """The steps that decide pixel values, plain JSON.

    Args:
        source: a folder or a Hugging Face ID.

    Raises:
        UserError: the file asks for a step that devices do not know.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    return known_steps(source, json.loads(processor.to_json_string()))


def known_steps(source: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Resize, crop, rescale and normalize of an image processor's configuration; see `read_preprocessing`."""
    steps = {key: config.get(key) for key in KEYS}
    steps["do_center_crop"] = bool(steps["do_center_crop"])
    if config.get("rescale_offset"):
        steps = _offset(steps, bool(config.get("include_top")))
    if config.get("do_pad"):
        raise UserError(f"The preprocessing of {source} pads images, which is not supported; resize and crop are.")
    try:
        Preprocessing.from_config(steps)
    except ValueError as error:
        raise UserError(f"The preprocessing of {source} ({FILE}) is not supported: {error}.") from error
    return steps


def _offset(steps: dict[str, Any], again: bool) -> dict[str, Any]:
    """EfficientNet's: 1 is subtracted from rescaled values before they are normalized, and again divided by the std."""
    normalized = steps["do_normalize"]
    mean, std = steps["image_mean"], steps["image_std"]
    means = [1.0 + value if normalized else 1.0 for value in mean]
    factors = [(value if normalized else 1.0) * (value if again else 1.0) for value in std]
    return {**steps, "do_normalize": True, "image_mean": means, "image_std": factors}
