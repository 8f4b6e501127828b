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
    try:
        Preprocessing.from_config(steps)
    except ValueError as error:
        raise UserError(f"The preprocessing of {source} ({FILE}) is not supported: {error}.") from error
    return steps
