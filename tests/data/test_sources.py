"""What a researcher would lose: built-in data that is what it says, the same from the same seed, and truly unseen."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from sklearn.datasets import load_digits

from fedgraft.backbones.loading import mini_folder
from fedgraft.config.registry import SOURCES
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples, as_rgb, pixel_examples
from fedgraft.data.sources import characters
from fedgraft.data.sources import shapes as shapes_source
from fedgraft.data.sources.source import open_source
from fedgraft.data.worlds import glyphs, shapes
from fedgraft.methods.plan import Plan
from tools.mini.captions import font_files

BUILT_IN = ("characters", "digits", "shapes")
ALL_FONTS = characters.FAMILIES
MATPLOTLIB_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(autouse=True)
def _few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes_source, "IMAGES_PER_CLASS_AND_STYLE", 1)
    monkeypatch.setattr(characters, "DRAWINGS_PER_CLASS_AND_FAMILY", 1)
    few_fonts = {family: files[:1] for family, files in characters.FAMILIES.items()}
    monkeypatch.setattr(characters, "FAMILIES", few_fonts)


def _pixels(examples: Examples, count: int = 40) -> np.ndarray:
    return np.stack([np.asarray(examples.load(index)) for index in range(0, len(examples), len(examples) // count)])


def test_digits_are_the_1797_of_scikit_learn_under_their_own_names(digits: Examples) -> None:
    assert len(digits) == 1797
    assert digits.class_names == tuple(sorted(glyphs.DIGIT_NAMES))
    names = [digits.class_names[label] for label in digits.labels]
    assert names == [glyphs.DIGIT_NAMES[digit] for digit in load_digits().target]


def test_digits_show_the_ink_of_their_scans(digits: Examples) -> None:
    for index in (0, 500, 1796):
        image = digits.load(index)
        assert image.size == (48, 48)
        scan = np.asarray(image.convert("L").resize((8, 8)), float)
        assert np.corrcoef(scan.ravel(), load_digits().images[index].ravel())[0, 1] > 0.9


def test_shapes_are_the_120_held_out_combinations_in_six_styles() -> None:
    examples = open_source("shapes", seed=0)
    assert examples.class_names == tuple(combination.name for combination in shapes.HELD_OUT)
    assert list(examples.class_names) == sorted(examples.class_names)
    assert len(examples.class_names) == 120
    assert examples.domain_names == ("faded", "flat", "mosaic", "noisy", "scene", "shaded")
    pairs = set(zip(examples.labels.tolist(), examples.domains.tolist(), strict=True))
    assert len(pairs) == 120 * 6


@pytest.mark.parametrize("protocol", ["base-to-novel", "dirichlet"])
def test_class_protocols_draw_from_the_styles_that_pretraining_never_saw(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes_source, "IMAGES_PER_CLASS_AND_STYLE", 2)
    examples = open_source("shapes", seed=0)
    options = {"alpha": 5.0} if protocol == "dirichlet" else {}
    config = RunConfig(protocol=protocol, sites=3, data="shapes", shots=0, protocol_options=options)
    unseen = {examples.domain_names.index(style) for style in shapes.EVALUATION_STYLES}
    for share in Plan.of(config).split(examples).folds[0].sites:
        held = np.concatenate([share.train, *share.tests.values()])
        assert set(examples.domains[held].tolist()) <= unseen


def test_a_style_of_shapes_holds_the_same_images_alone_as_among_all() -> None:
    alone, everything = open_source("shapes:noisy", seed=3), open_source("shapes", seed=3)
    noisy = everything.domains == everything.domain_names.index("noisy")
    assert alone.domain_names == ("noisy",)
    np.testing.assert_array_equal(alone.keys, everything.keys[noisy])


@pytest.mark.parametrize(
    ("argument", "styles"),
    [
        ("evaluation", ("faded", "mosaic", "noisy")),
        ("pretraining", ("flat", "scene", "shaded")),
        ("scene,flat,flat", ("flat", "scene")),
    ],
)
def test_the_argument_of_shapes_chooses_the_styles(argument: str, styles: tuple[str, ...]) -> None:
    examples = open_source(f"shapes:{argument}", seed=0)
    assert examples.domain_names == styles
    assert examples.class_protocol_domains == ()


def test_characters_are_36_classes_in_five_font_families() -> None:
    examples = open_source("characters", seed=0)
    assert examples.class_names == tuple(sorted(glyphs.CHARACTER_NAMES))
    assert examples.domain_names == tuple(sorted(characters.FAMILIES))
    assert len(examples) == 36 * 5


def test_a_character_shows_the_letter_or_digit_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    family, (font, *_) = next(iter(ALL_FONTS.items()))
    monkeypatch.setattr(characters, "FAMILIES", {family: (font,)})
    drawn = []

    def distort(masks: torch.Tensor, size: int, *_: object, **__: object) -> torch.Tensor:
        drawn.append((masks * 255).round().byte().numpy())
        return torch.zeros(len(masks), size, size)

    monkeypatch.setattr(glyphs, "distort", distort)
    examples = open_source("characters", seed=0)
    glyph_of = glyphs.font_masks(MATPLOTLIB_FONTS / f"{font}.ttf")
    assert glyph_of is not None
    for mask, label in zip(drawn[0], examples.labels, strict=True):
        cases = glyph_of[glyphs.CHARACTER_NAMES.index(examples.class_names[label])]
        assert any(np.array_equal(mask, case) for case in cases)


def test_the_fonts_of_characters_are_matplotlibs_and_complete() -> None:
    assert len(ALL_FONTS) == 5
    for files in ALL_FONTS.values():
        for file in files:
            masks = glyphs.font_masks(MATPLOTLIB_FONTS / f"{file}.ttf")
            assert masks is not None
            assert masks.shape == (36, 2, glyphs.MASK_SIZE, glyphs.MASK_SIZE)


def test_the_fonts_of_characters_have_no_relative_among_those_of_pretraining() -> None:
    packages = (mini_folder().parent / "fonts.txt").read_text().split()
    assert packages
    assert not [name for name in packages if any(word in name for word in ("dejavu", "stix", "cmu", "cm-unicode"))]
    families = {ImageFont.truetype(str(path)).getname()[0] for path in font_files(MATPLOTLIB_FONTS)}
    assert not {name for name in families if name and name.startswith(("DejaVu", "STIX"))}


@pytest.mark.parametrize("spec", BUILT_IN)
def test_a_seed_decides_every_pixel_and_key(spec: str) -> None:
    first, again = open_source(spec, seed=5), open_source(spec, seed=5)
    np.testing.assert_array_equal(first.keys, again.keys)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(_pixels(first), _pixels(again))


@pytest.mark.parametrize("spec", ["characters", "shapes"])
def test_another_seed_draws_other_images_of_the_same_classes(spec: str) -> None:
    first, other = open_source(spec, seed=5), open_source(spec, seed=6)
    assert first.class_names == other.class_names
    assert not (first.keys == other.keys).all(1).any()


@pytest.mark.parametrize("spec", BUILT_IN)
def test_templates_have_one_place_for_the_class_name(spec: str) -> None:
    for template in open_source(spec, seed=0).templates:
        assert template.count("{}") == 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("shape", "Did you mean 'shapes'?"),
        ("foldr:photos", "Did you mean 'folder'?"),
        ("Digits", "Did you mean 'digits'?"),
        ("nothing-like-it", "There is no data source 'nothing-like-it'"),
        ("shapes:nosy", "Did you mean 'noisy'?"),
        ("shapes:flat,", "There is no style of the shapes world ''"),
        ("digits:8", "takes no argument, not '8'"),
        ("characters:serif", "takes no argument, not 'serif'"),
        ("folder:", "folder:PATH"),
        ("hf", "hf:ID"),
    ],
)
def test_a_mistaken_source_is_named_with_the_nearest_one(spec: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        open_source(spec, seed=0)
    assert said in str(error.value)


def test_every_source_says_how_it_is_used() -> None:
    for source in SOURCES:
        assert source.usage.startswith(source.name)
        assert source.summary


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (("only",), [0, 0], "only one class"),
        (("a", "b", "c"), [0, 2], "'b'"),
        (("a", "a"), [0, 1], "Several classes have the name 'a'"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(names: tuple[str, ...], labels: list[int], said: str) -> None:
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match=said):
        pixel_examples(pixels, np.asarray(labels), names)


def test_16_bit_gray_keeps_its_shades() -> None:
    """Pillow alone turns it white, and a scan's user would train on blank images."""
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = np.asarray(as_rgb(Image.fromarray(shades)))
    np.testing.assert_array_equal(image[..., 0], shades >> 8)
