"""Stripes: images in memory whose class is a colour and whose domain is the direction of the stripes."""

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.data.examples import Examples, pixel_examples
from fedgraft.data.sources.source import Source

COLOURS = {"blue": (30, 60, 220), "green": (30, 180, 60), "red": (220, 40, 30), "yellow": (230, 210, 40)}
DIRECTIONS = ("horizontal", "vertical")


class StripesOptions(Options):
    """How many."""

    images: int = Field(24, ge=4, description="images per class and direction", examples=[48])


def open_examples(options: StripesOptions, seed: int) -> Examples:
    """Images (48, 48, 3) drawn from the seed."""
    rng = np.random.default_rng(seed)
    pixels, labels, domains = [], [], []
    for label, colour in enumerate(COLOURS.values()):
        for domain in range(len(DIRECTIONS)):
            for _ in range(options.images):
                stripes = np.sin(np.arange(48) * rng.uniform(0.3, 1.5) + rng.uniform(0, 6))[:, None, None]
                image = np.asarray(colour) * (0.7 + 0.3 * stripes) + rng.normal(0, 15, (48, 48, 3))
                image = image if domain == 0 else image.swapaxes(0, 1)
                pixels.append(image.clip(0, 255).astype(np.uint8))
                labels.append(label)
                domains.append(domain)
    return pixel_examples(
        np.stack(pixels),
        np.asarray(labels),
        tuple(f"{colour} stripes" for colour in COLOURS),
        np.asarray(domains),
        DIRECTIONS,
        templates=("a picture of {}.",),
    )


SOURCE = Source(
    name="example-stripes",
    summary="stripes in four colours and two directions",
    open=open_examples,
    options=StripesOptions,
)
