"""The shapes world as a data source: the 120 held-out combinations, in rendering styles as domains."""

import numpy as np

from fedgraft.data.examples import Examples, pixel_examples
from fedgraft.data.sources import SourceRequest
from fedgraft.data.worlds import shapes
from fedgraft.errors import unknown
from fedgraft.randomness import generator

IMAGES_PER_CLASS_AND_STYLE = 18
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "this is a {}", "a {}")


def open_examples(request: SourceRequest) -> Examples:
    """The styles that the argument names, separated by commas; all six without one.

    Class-based protocols then draw from the three evaluation styles only.
    """
    chosen = _styles(request.argument)
    classes = tuple(combination.name for combination in shapes.HELD_OUT)
    rng = generator(request.seed, "shapes")
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
    return pixel_examples(
        np.stack(pixels),
        np.asarray(labels),
        classes,
        np.asarray(domains),
        chosen,
        templates=TEMPLATES,
        class_protocol_domains=() if request.argument else shapes.EVALUATION_STYLES,
    )


def _styles(argument: str) -> tuple[str, ...]:
    groups = {"": shapes.STYLES, "evaluation": shapes.EVALUATION_STYLES, "pretraining": shapes.PRETRAINING_STYLES}
    if argument in groups:
        return tuple(sorted(groups[argument]))
    names = argument.split(",")
    for name in names:
        if name not in shapes.STYLES:
            raise unknown("style of the shapes world", name, (*shapes.STYLES, "evaluation", "pretraining"))
    return tuple(sorted(set(names)))
