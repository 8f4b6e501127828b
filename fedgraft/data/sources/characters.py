"""Letters and digits in fonts that the embedded backbone never saw: those that ship with matplotlib.

The classes are single words ("seven", "g") that have nothing in common, and the rendering is that of pretraining: here
adaptation has little to gain and something to lose. The font families are the domains.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed, generator
from fedgraft.data.examples import Examples, pixel_examples
from fedgraft.data.sources.source import Source
from fedgraft.data.worlds import glyphs, shapes

TEMPLATES = ("the character {}.", "an image of the {}.", "a printed {}.", "the {}", "{}")
DRAWINGS_PER_CLASS_AND_FAMILY = 24
FAMILIES: dict[str, tuple[str, ...]] = {
    "computer-modern": ("cmr10", "cmb10", "cmss10", "cmtt10"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}


def open_examples(options: Options, seed: int) -> Examples:
    """The characters drawn from the seed: 24 of each class in each of five font families."""
    names = tuple(sorted(glyphs.CHARACTER_NAMES))
    order = np.asarray([glyphs.CHARACTER_NAMES.index(name) for name in names])
    folder = _font_folder()
    pixels, labels, domains = [], [], []
    for position, (family, files) in enumerate(FAMILIES.items()):
        atlas = np.stack([_masks(folder / f"{file}.ttf") for file in files])[:, order]
        rng = generator(seed, "characters", family)
        family_labels = np.repeat(np.arange(len(names)), DRAWINGS_PER_CLASS_AND_FAMILY)
        count = len(family_labels)
        fonts, cases = rng.integers(len(files), size=count), rng.integers(2, size=count)
        masks = torch.from_numpy(atlas[fonts, family_labels, cases]).float() / 255
        torch_generator = torch.Generator().manual_seed(derived_seed(seed, "distortions", family))
        ink = glyphs.distort(masks, shapes.IMAGE_SIZE, torch_generator, strength=0.8)
        light, dark = torch.full((count, 3), 0.95), torch.full((count, 3), 0.05)
        inverted = torch.from_numpy(rng.random(count) < 0.5)[:, None]
        images = glyphs.tint(ink, torch.where(inverted, light, dark), torch.where(inverted, dark, light))
        images = images + glyphs.noise_level(torch_generator, count, 0.1) * torch.randn(
            images.shape, generator=torch_generator
        )
        pixels.append((images.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy())
        labels.append(family_labels)
        domains.append(np.full(count, position))
    together = np.concatenate(pixels), np.concatenate(labels), names, np.concatenate(domains)
    return pixel_examples(*together, tuple(FAMILIES), templates=TEMPLATES)


def _font_folder() -> Path:
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise UserError("The data source 'characters' uses matplotlib's fonts, but matplotlib is not installed.")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def _masks(path: Path) -> NDArray[np.uint8]:
    masks = glyphs.font_masks(path)
    if masks is None:
        raise UserError(f"The font {path} cannot be read or lacks letters; is the matplotlib installation complete?")
    return masks


SOURCE = Source(
    "characters", "36 letters and digits from fonts that pretraining never saw; classes share no words", open_examples
)
