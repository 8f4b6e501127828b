"""A Hugging Face dataset with an image and a label column, given by its ID or a local folder of Parquet files."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples, as_rgb, content_key
from fedgraft.data.sources.folder import readable
from fedgraft.data.sources.source import Source


class HubOptions(Options):
    """Which dataset to load."""

    id: str = Field(description="ID of the dataset, or a local folder of Parquet files", examples=["ylecun/mnist"])


def open_examples(options: HubOptions, seed: int) -> Examples:
    """The training split, or else the first one; classes are sorted by name.

    Raises:
        UserError: the dataset cannot be loaded, has no image or class-label column, or has unlabelled images.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(options.id)
    except Exception as error:
        raise UserError(f"The dataset {options.id!r} cannot be loaded: {_first_line(error)}") from error
    table = loaded["train"] if "train" in loaded else loaded[next(iter(loaded))]
    image_column = _column(table, datasets.Image, options.id)
    label_column = _column(table, datasets.ClassLabel, options.id)
    given = table.features[label_column].names
    order = sorted(range(len(given)), key=lambda index: readable(given[index]))
    position = np.empty(len(given), np.int64)
    position[order] = np.arange(len(given))

    labels = np.asarray([-1 if label is None else label for label in table[label_column]], np.int64)
    if (labels < 0).any():
        raise UserError(
            f"{int((labels < 0).sum())} of the {len(labels)} images of the dataset {options.id!r} "
            f"have no label in the column {label_column!r}; filter them out."
        )

    def load(index: int) -> Image.Image:
        try:
            return as_rgb(table[index][image_column])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"The image in row {index} of the dataset {options.id!r} cannot be decoded: {error}."
            ) from error

    return Examples(
        class_names=tuple(readable(given[index]) for index in order),
        labels=position[labels],
        domain_names=("all",),
        domains=np.zeros(len(table), np.int64),
        keys=np.stack([_pixel_key(load(index)) for index in range(len(table))]),
        load=load,
    )


def _pixel_key(image: Image.Image) -> NDArray[np.uint8]:
    return content_key(f"{image.width}x{image.height}:".encode() + image.tobytes())


def _column(table: Any, kind: type, name: str) -> str:
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if not found:
        raise UserError(
            f"The dataset {name!r} has no column of type {kind.__name__}; its columns are {list(table.features)}."
        )
    return str(found[0])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SOURCE = Source(
    "hf", "a Hugging Face dataset with an image and a label column", open_examples, options=HubOptions, argument="id"
)
