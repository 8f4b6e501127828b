"""From an image to pixel values by Hugging Face's preprocessor_config.json, bit for bit as in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgraft.device.errors import ImageError
from fedgraft.device.image_files import PIXEL_LIMIT, load_image

KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "do_rescale", "rescale_factor",
    "rescale_offset", "do_normalize", "image_mean", "image_std", "include_top",
)  # fmt: skip
"""The keys of a preprocessor_config.json that decide pixel values; others are ignored."""
_SIZE_KEYS = ({"shortest_edge"}, {"height", "width"})
_SIDE_LIMIT = 4096


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, rescale and normalize; a step left out by the configuration is None.

    Attributes:
        shortest_edge: of the resized image, or None where `size` is (height, width).
        size: (height, width) of the resized image.
        crop: (height, width).
        offset: whether 1 is taken from rescaled values.
        mean, std: (3,).
        again: whether normalized values are divided by `std` once more, as EfficientNet's are with its head.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    factor: float | None
    mean: NDArray[np.float32] | None
    std: NDArray[np.float32] | None
    offset: bool = False
    again: bool = False

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """From the content of preprocessor_config.json; raises ValueError if it is invalid or asks for more."""
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        if config.get("do_pad"):
            raise ValueError("it pads images (do_pad)")
        size = config.get("size") if config.get("do_resize", True) else None
        if isinstance(size, dict) and {key for key, value in size.items() if value is not None} not in _SIZE_KEYS:
            raise ValueError(f"a size of {size!r} is neither a shortest_edge nor a height and a width")
        shortest = size.get("shortest_edge") if isinstance(size, dict) else size
        crops = config.get("do_center_crop", config.get("crop_size") is not None)
        rescale, normalize = config.get("do_rescale", True), config.get("do_normalize", True)
        again = bool(config.get("include_top"))
        return cls(
            shortest_edge=None if shortest is None else _side(shortest),
            size=None if size is None or shortest is not None else _sides(size),
            resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
            crop=_sides(config.get("crop_size")) if crops else None,
            factor=_number(config.get("rescale_factor")) if rescale else None,
            mean=_three(config.get("image_mean")) if normalize else None,
            std=_three(config.get("image_std")) if normalize or again else None,
            offset=bool(rescale and config.get("rescale_offset")),
            again=again,
        )

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Pixel values (3, height, width) of an image of any mode.

        Raises:
            ImageError: it is too large, or would be once resized.
        """
        resized = self._resized(load_image(image))
        values = np.moveaxis(np.asarray(resized), -1, 0)
        values = values if self.crop is None else _centre(values, *self.crop)
        scaled = values.astype(np.float32)
        if self.factor is not None:
            scaled = (values.astype(np.float64) * self.factor).astype(np.float32)
        if self.offset:
            scaled = scaled - np.float32(1)
        if self.mean is not None and self.std is not None:
            scaled = (scaled - self.mean[:, None, None]) / self.std[:, None, None]
        if self.again and self.std is not None:
            scaled = scaled / self.std[:, None, None]
        return np.ascontiguousarray(scaled)

    def batch(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Pixel values (B, 3, height, width)."""
        return np.stack([self.pixels(image) for image in images])

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.shortest_edge is not None:
            short, long = sorted(image.size)
            longer = int(self.shortest_edge * long / short)
            if self.shortest_edge * longer > PIXEL_LIMIT:
                raise ImageError(f"The image of {image.width} x {image.height} pixels is too narrow to be resized.")
            upright = image.width <= image.height
            wanted = (self.shortest_edge, longer) if upright else (longer, self.shortest_edge)
        elif self.size is not None:
            wanted = (self.size[1], self.size[0])
        else:
            return image
        return image.resize(wanted, self.resample)


def _centre(values: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The centre of (3, h, w), padded with black where it is smaller."""
    top, left = (values.shape[1] - height) // 2, (values.shape[2] - width) // 2
    if top >= 0 and left >= 0:
        return values[:, top : top + height, left : left + width]
    above, before = max(0, -top), max(0, -left)
    padded = np.pad(values, ((0, 0), (above, height), (before, width)))
    return padded[:, top + above :, left + before :][:, :height, :width]


def _side(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _SIDE_LIMIT:
        raise ValueError(f"a side of {value!r} pixels is not between 1 and {_SIDE_LIMIT}")
    return value


def _sides(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        return _side(value.get("height")), _side(value.get("width"))
    return _side(value), _side(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _three(value: Any) -> NDArray[np.float32]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{value!r} is not a list of three numbers, one per colour")
    return np.asarray([_number(part) for part in value], np.float32)
