"""The shapes world as a data source: the 120 held-out combinations; the rendering styles are the domains."""

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.core.errors import unknown
from fedgraft.core.randomness import generator
from fedgraft.data.examples import Examples, pixel_examples
from fedgraft.data.sources.source import Source
from fedgraft.data.worlds import shapes

IMAGES_PER_CLASS_AND_STYLE = 18
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "this is a {}", "a {}")


class ShapesOptions(Options):
    """Which rendering styles."""

    styles: str = Field("", description="a,b,..., evaluation or pretraining; empty for all", examples=["noisy,faded"])


def open_examples(options: ShapesOptions, seed: int) -> Examples:
    """The given styles; if none is given, all, but class-based protocols draw from the three evaluation styles only."""
    chosen = _styles(options.styles)
    classes = tuple(combination.name for combination in shapes.HELD_OUT)
    rng = generator(seed, "shapes")
    backgrounds = list(shapes.BACKGROUNDS)
    pixels, labels, domains = [], [], []
    for style in shapes.STYLES:
        style_rng = np.random.default_rng(rng.integers(2**62))
        if style not in chosen:
            continue
        for label, combination in enumerate(shapes.HELD_OUT):
            for _ in range(IMAGES_PER_CLASS_AND_STYLE):
                background = backgrounds[int(style_rng.integers(len(backgrounds)))]
                scene = shapes.Scene(combination, style, background, large=bool(style_rng.random() < 0.8))
                pixels.append(shapes.draw(scene, style_rng))
                labels.append(label)
                domains.append(chosen.index(style))
    together = np.stack(pixels), np.asarray(labels), classes, np.asarray(domains), chosen
    drawn_from = () if options.styles else shapes.EVALUATION_STYLES
    return pixel_examples(*together, templates=TEMPLATES, class_protocol_domains=drawn_from)


def _styles(argument: str) -> tuple[str, ...]:
    groups = {"": shapes.STYLES, "evaluation": shapes.EVALUATION_STYLES, "pretraining": shapes.PRETRAINING_STYLES}
    if argument in groups:
        return tuple(sorted(groups[argument]))
    names = argument.split(",")
    for name in names:
        if name not in shapes.STYLES:
            raise unknown("style of the shapes world", name, (*shapes.STYLES, "evaluation", "pretraining"))
    return tuple(sorted(set(names)))


SOURCE = Source(
    "shapes",
    "120 unseen colour-texture-shape classes in six rendering styles, three of them never pretrained on",
    open_examples,
    options=ShapesOptions,
    argument="styles",
)
