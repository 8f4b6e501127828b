"""What every registered backbone family must keep, on the small random sample that it writes itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.family import Family
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError

NAMES = ("red circle", "seven", "laptop computer")


@pytest.fixture(params=list(BACKBONES), ids=lambda family: str(family.name), scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    """Each family that writes a sample."""
    found: Family = request.param
    if found.sample is None:
        pytest.skip("this family writes no sample")
    return found


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sample."""
    path = tmp_path_factory.mktemp("sample")
    assert family.sample is not None
    family.sample(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    """The sample, loaded as a user loads it."""
    return load_backbone(str(folder))


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((40, 64), (64, 40), (50, 50))
    return [Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)) for size in sizes]


def test_it_recognizes_its_own_folders_and_no_other(family: Family, folder: Path, tmp_path: Path) -> None:
    assert [other.name for other in BACKBONES if other.recognizes(folder)] == [family.name]
    assert not family.recognizes(tmp_path)


def test_the_fingerprint_is_that_of_the_files(folder: Path, backbone: Backbone) -> None:
    assert len(backbone.fingerprint) == len(backbone.preprocessing) == 64
    assert load_backbone(str(folder)).fingerprint == backbone.fingerprint


def test_features_are_unit_rows_of_one_size(backbone: Backbone) -> None:
    images = backbone.encode_images(backbone.preprocess(_images()))
    texts = backbone.text.encode_classes(NAMES, ("a photo of a {}.", "the {}"))
    assert images.shape == texts.shape == (3, backbone.dim)
    for features in (images, texts):
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-5)
        assert not torch.allclose(features[0], features[1], atol=1e-4), "it tells nothing apart"


def test_an_image_of_a_batch_has_the_features_that_it_has_alone(backbone: Backbone) -> None:
    pixels = backbone.preprocess(_images())
    together = backbone.encode_images(pixels)
    alone = torch.cat([backbone.encode_images(image[None]) for image in pixels])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_text_as_a_prompt_has_the_features_of_the_text(family: Family, backbone: Backbone) -> None:
    """The exact fast path: what all begin with is encoded once."""
    if not family.placements:
        pytest.skip("its text tower takes no prompts")
    texts = [f"a photo of a {name}." for name in NAMES]
    context, tokens = backbone.text.tokenize_texts(texts)
    assert torch.allclose(
        backbone.text.encode_prompts(context[None], tokens)[0], backbone.text.encode_texts(texts), atol=1e-5
    )


def test_a_context_learns_wherever_the_family_says_that_it_may_stand(family: Family, backbone: Backbone) -> None:
    tokens = backbone.text.tokenize_names(NAMES)
    for placement in family.placements:
        context = torch.zeros(1, 2, backbone.text.width, requires_grad=True)
        features = backbone.text.encode_prompts(context, tokens, placement=placement)
        assert features.shape == (1, 3, backbone.dim)
        (gradient,) = torch.autograd.grad(features[0, 0, 0], context)
        assert gradient.norm() > 0


def test_low_rank_adapters_find_maps_in_the_towers_that_the_family_names(family: Family, backbone: Backbone) -> None:
    for tower in ("text", "image"):
        assert bool(backbone.linear_maps(tower)) == (tower in family.adapts)


def test_what_is_cached_below_a_layer_ends_in_the_same_features(family: Family, backbone: Backbone) -> None:
    pixels = backbone.preprocess(_images())
    if "image" not in family.adapts:
        with pytest.raises(UserError, match="cannot be cut"):
            backbone.represent_images(pixels, 0)
        return
    kept = backbone.represent_images(pixels, 0)
    assert kept.shape[1:] == backbone.image_shape(0)
    assert torch.allclose(backbone.finish_images(kept, 0), backbone.encode_images(pixels), atol=1e-5)


def test_the_tower_for_devices_has_the_features_of_the_backbone(family: Family, backbone: Backbone) -> None:
    if not family.exports:
        with pytest.raises(UserError, match="cannot be pruned or exported"):
            backbone.vision_tower()
        return
    pixels = backbone.preprocess(_images())
    assert torch.allclose(backbone.vision_tower()(pixels), backbone.encode_images(pixels), atol=1e-5)
    assert backbone.preprocessor_config()
