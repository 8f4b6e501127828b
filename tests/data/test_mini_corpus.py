"""What an evaluation on unseen classes and styles would lose: a pretraining corpus that never shows one of them."""

import numpy as np
import pytest

from fedgraft.backbones.mini import corpus as corpus_module
from fedgraft.backbones.mini.corpus import ATTRIBUTES, Corpus
from fedgraft.data.worlds import shapes
from tools.mini.captions import matches

STEPS = range(3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    atlas = np.random.default_rng(0).integers(0, 256, (3, 36, 2, 64, 64), np.uint8)
    return Corpus(atlas, seed=0, batch_size=96)


def test_exactly_a_fifth_of_all_combinations_is_held_out(corpus: Corpus) -> None:
    everything = {
        shapes.Combination(colour, texture, shape)
        for colour in shapes.COLOURS
        for texture in shapes.TEXTURES
        for shape in shapes.SHAPES
    }
    held_out, trained = set(shapes.HELD_OUT), set(corpus.combinations)
    assert 5 * len(held_out) == len(everything)
    assert held_out | trained == everything
    assert not held_out & trained


def test_every_colour_texture_and_shape_is_both_trained_and_held_out() -> None:
    """Otherwise a held-out class would need a word that pretraining never used."""
    for place, values in enumerate((shapes.COLOURS, shapes.TEXTURES, shapes.SHAPES)):
        counts = [sum(combination[place] == value for combination in shapes.HELD_OUT) for value in values]
        assert set(counts) == {len(shapes.HELD_OUT) // len(values)}


def test_no_image_and_no_caption_holds_a_held_out_combination(corpus: Corpus) -> None:
    colours, held_out = list(shapes.COLOURS), set(shapes.HELD_OUT)
    columns = [ATTRIBUTES.index(name) for name in ("colour", "texture", "shape")]
    for batch in map(corpus.batch, STEPS):
        rows = batch.shown[batch.shown[:, ATTRIBUTES.index("shape")] >= 0][:, columns].tolist()
        assert rows
        for colour, texture, shape in rows:
            shown = shapes.Combination(colours[colour], shapes.TEXTURES[texture], shapes.SHAPES[shape])
            assert shown not in held_out
        text = "\n".join(batch.captions)
        assert not [combination.name for combination in held_out if combination.name in text]


def test_no_image_is_drawn_in_an_evaluation_style(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = []

    def draw(scene: shapes.Scene, rng: np.random.Generator) -> np.ndarray:
        scenes.append(scene)
        return np.zeros((shapes.IMAGE_SIZE, shapes.IMAGE_SIZE, 3), np.uint8)

    monkeypatch.setattr(corpus_module.shapes, "draw", draw)
    for step in STEPS:
        corpus.batch(step)
    assert {scene.style for scene in scenes} == set(shapes.PRETRAINING_STYLES)
    assert not set(shapes.PRETRAINING_STYLES) & set(shapes.EVALUATION_STYLES)


def test_a_caption_is_true_of_its_own_image(corpus: Corpus) -> None:
    assert matches(corpus.batch(0)).diagonal().all()


def test_a_step_gives_the_same_batch_again_and_another_step_another(corpus: Corpus) -> None:
    """A resumed pretraining sees what it would have seen."""
    first, again, other = corpus.batch(3), corpus.batch(3), corpus.batch(4)
    assert first.images.equal(again.images)
    assert first.captions == again.captions
    assert first.captions != other.captions
    assert not first.images.equal(other.images)
