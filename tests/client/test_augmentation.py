"""What augmentation in every step would lose: another image each time, of the right kind, told before it starts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft import RunConfig, UserError
from fedgraft.client.augmentation import augmented
from fedgraft.client.loaded_run import SimulatedRun
from fedgraft.client.site import Site
from fedgraft.core.observer import Observer
from fedgraft.methods.plan import Plan
from fedgraft.server.preparation import prepare


def _ramp(width: int, height: int) -> Image.Image:
    """Brighter to the right in red, and downwards in green."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8))


def test_a_flip_mirrors_half_of_the_images_and_nothing_else() -> None:
    image, rng = _ramp(40, 30), np.random.default_rng(0)
    drawn = [np.asarray(augmented(image, "flip", 16, rng)) for _ in range(60)]
    mirrored = [np.array_equal(pixels, np.asarray(image)[:, ::-1]) for pixels in drawn]
    unchanged = [np.array_equal(pixels, np.asarray(image)) for pixels in drawn]
    assert [not flipped for flipped in mirrored] == unchanged
    assert 15 < sum(mirrored) < 45


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (400, 4), (4, 400), (1, 1)])
def test_a_crop_has_the_side_of_the_towers_input_and_varies(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    drawn = [augmented(_ramp(*size), "crop-flip", 16, rng) for _ in range(5)]
    assert {image.size for image in drawn} == {(16, 16)}
    if min(size) > 1:
        assert len({image.tobytes() for image in drawn}) > 1


def test_crops_cover_8_to_100_percent_of_the_image() -> None:
    """On a ramp, the range of brightness is the extent of the crop."""
    rng = np.random.default_rng(0)
    drawn = [np.asarray(augmented(_ramp(256, 256), "crop-flip", 64, rng), float) for _ in range(200)]
    areas = [np.ptp(pixels[..., 0]) * np.ptp(pixels[..., 1]) / 255**2 for pixels in drawn]
    assert 0.04 < min(areas) < 0.2
    assert 0.9 < max(areas) <= 1


class _Listener(Observer):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def on_notice(self, sentence: str) -> None:
        self.sentences.append(sentence)


def test_a_site_trains_on_images_drawn_anew_and_the_cost_is_told_first(images: Path, tmp_path: Path) -> None:
    config = RunConfig(
        method="promptfl", data=f"folder:{images}", protocol="dirichlet", protocol_options={"partition": "iid"},
        sites=2, rounds=3, shots=2, local_epochs=2, augment="crop-flip", method_options={"n_ctx": 2},
    )  # fmt: skip
    listener = _Listener()
    coordinator = prepare(config, tmp_path / "run", False, listener)
    assert coordinator is not None
    coordinator.directory.unlock()
    (said,) = [sentence for sentence in listener.sentences if "augment" in sentence]
    trained = sum(len(share.train) for share in coordinator.split.folds[0].sites)
    assert f"{trained * 6} passes of the image tower in place of {trained}" in said
    site = Site(SimulatedRun(config, tmp_path / "run"), fold=0, site=0)
    data, again, later = site.training_data(1), site.training_data(1), site.training_data(2)
    assert data.drawn is not None
    assert again.drawn is not None
    assert later.drawn is not None
    rows = np.arange(2)
    first, second, repeated, other = data.drawn(rows), data.drawn(rows), again.drawn(rows), later.drawn(rows)
    assert first.shape == second.shape == data.features[:2, 0].shape
    assert not np.allclose(first, second, atol=1e-3)
    assert np.array_equal(first, repeated), "the same round draws the same images"
    assert not np.allclose(first, other, atol=1e-3)


def test_views_computed_once_and_images_drawn_anew_exclude_each_other() -> None:
    with pytest.raises(UserError, match="give one view"):
        Plan.of(RunConfig(views=2, augment="flip"))
