"""The preprocessing of an OpenCLIP model as Hugging Face writes it."""

from typing import Any

from fedgraft.core.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESAMPLING = {"bicubic": 3, "bilinear": 2, "random": 3}
"""Pillow's numbers; "random" is for training, and bicubic otherwise."""


def preprocessor_config(size: int, preprocess: dict[str, Any], processor: str = "CLIPImageProcessor") -> dict[str, Any]:
    """A `preprocessor_config.json`.

    Args:
        size: the side of the image that the tower takes.
        preprocess: OpenCLIP's `preprocess_cfg`; what it leaves out is OpenAI's.

    Raises:
        UserError: images are padded to a square, or the interpolation is unknown.
    """
    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if interpolation not in _RESAMPLING:
        raise UserError(f"The interpolation {interpolation!r} is unknown; expected {' or '.join(_RESAMPLING)}.")
    square = {"height": size, "width": size}
    fits: dict[str, dict[str, Any]] = {
        "shortest": {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square},
        "squash": {"size": square, "do_center_crop": False},
    }
    if mode not in fits:
        raise UserError(f"Images are resized by {mode!r}; expected {' or '.join(fits)}.")
    return {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _RESAMPLING[interpolation],
        **fits[mode],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.get("mean", CLIP_MEAN)),
        "image_std": list(preprocess.get("std", CLIP_STD)),
    }
