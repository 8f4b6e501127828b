"""Whichever image processor a folder names, pixels are those of Hugging Face's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from fedgraft.backbones.dual.preprocessing import read_preprocessing
from fedgraft.core.errors import UserError
from fedgraft.device.preprocessing import Preprocessing

_SCALE = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
_NORMAL = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
_CROP = {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
_SQUARE = {"height": 32, "width": 32}


def _written(folder: Path, kind: str, **keys: Any) -> Path:
    key = "feature_extractor_type" if kind.endswith("Extractor") else "image_processor_type"
    (folder / "preprocessor_config.json").write_text(json.dumps({key: kind, **keys}))
    return folder


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = ((40, 64), (64, 40), (50, 50), (20, 90))
    return [Image.fromarray(rng.integers(0, 255, (*shape, 3)).astype(np.uint8)) for shape in shapes]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("CLIPImageProcessor", {"size": {"shortest_edge": 24}, "resample": 3, **_SCALE, **_NORMAL, **_CROP}),
        ("CLIPImageProcessor", {"size": _SQUARE, "do_center_crop": False, "resample": 2, **_SCALE, **_NORMAL}),
        ("ViTImageProcessor", {"size": _SQUARE, "resample": 2, **_SCALE, **_NORMAL}),
        ("ViTFeatureExtractor", {"size": 32, "resample": 2, **_SCALE, **_NORMAL}),
        ("ChineseCLIPImageProcessor", {"size": _SQUARE, "do_center_crop": False, "resample": 3, **_SCALE, **_NORMAL}),
        ("EfficientNetImageProcessor", {"size": _SQUARE, **_SCALE, **_NORMAL, **_CROP, "include_top": False}),
        (
            "EfficientNetImageProcessor",
            {"size": _SQUARE, **_SCALE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}
            | {"do_normalize": False, "resample": 2, **_CROP},
        ),
        (
            "EfficientNetImageProcessor",
            {"size": _SQUARE, **_SCALE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": True}
            | {**_NORMAL, "do_center_crop": False},
        ),
        ("EfficientNetImageProcessor", {"size": _SQUARE, **_SCALE, **_NORMAL, "include_top": True}),
    ],
)
def test_pixels_are_those_of_the_image_processor(kind: str, keys: dict[str, Any], tmp_path: Path) -> None:
    folder = _written(tmp_path, kind, **keys)
    expected = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=_images(), return_tensors="np")
    pixels = Preprocessing.from_config(read_preprocessing(str(folder))).batch(_images())
    assert np.allclose(pixels, expected["pixel_values"], atol=1e-5)


def test_a_step_that_devices_do_not_know_is_refused(tmp_path: Path) -> None:
    folder = _written(tmp_path, "CLIPImageProcessor", size={"longest_edge": 24}, **_SCALE, **_NORMAL, **_CROP)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        read_preprocessing(str(folder))
    folder = _written(tmp_path, "CLIPImageProcessor", do_pad=True, size=_SQUARE, **_SCALE, **_NORMAL, **_CROP)
    with pytest.raises(UserError, match="pads images"):
        read_preprocessing(str(folder))
