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
    offset, again = bool(config.get("rescale_offset")), bool(config.get("include_top"))
    if offset or again:
        steps = _as_mean_and_std(steps, offset, again)
    if config.get("do_pad"):
        raise UserError(f"The preprocessing of {source} pads images, which is not supported; resize and crop are.")
    try:
        Preprocessing.from_config(steps)
    except ValueError as error:
        raise UserError(f"The preprocessing of {source} ({FILE}) is not supported: {error}.") from error
    return steps


def _as_mean_and_std(steps: dict[str, Any], offset: bool, again: bool) -> dict[str, Any]:
    """EfficientNet's steps as one normalization.

    Args:
        offset: whether 1 is subtracted from rescaled values before they are normalized.
        again: whether they are divided by the std once more.
    """
    normalized = bool(steps["do_normalize"])
    means = [(value if normalized else 0.0) + offset for value in steps["image_mean"]]
    factors = [value ** (normalized + again) for value in steps["image_std"]]
    return {**steps, "do_normalize": True, "image_mean": means, "image_std": factors}
