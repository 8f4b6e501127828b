"""The images that devices test themselves on are several and none of a site's; ranges come from others again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from fedgraft.core.errors import UserError
from fedgraft.edge_export.golden import golden
from fedgraft.edge_export.measurement_images import folder_images
from fedgraft.edge_export.number_formats import find_format


def _colours(images: list[Image.Image]) -> np.ndarray:
    """An embedding (n, 3) of unit norm."""
    means = np.stack([np.asarray(image).reshape(-1, 3).mean(axis=0) + 1 for image in images])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _folder(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3)).astype(np.uint8)).save(path)
    return folder


def test_several_different_images_come_with_fedgraft_and_are_the_same_each_time() -> None:
    contents, record = golden(_colours, find_format("int8"), None)
    again, _ = golden(_colours, find_format("int8"), None)
    assert contents == again
    tensors = load(contents["golden.safetensors"])
    assert record.images == len(tensors["images"]) == len(tensors["embeddings"]) == 16
    assert len({image.tobytes() for image in tensors["images"]}) == 16
    assert (record.min_cosine, record.min_centred_cosine, record.min_agreement) == (0.97, 0.95, 75.0)
    assert np.allclose(tensors["embeddings"], _colours([Image.fromarray(image) for image in tensors["images"]]))


def test_the_users_own_images_may_take_their_place(tmp_path: Path) -> None:
    contents, record = golden(_colours, find_format("none"), _folder(tmp_path / "own", 20))
    assert record.images == 16
    assert load(contents["golden.safetensors"])["images"].shape == (16, 96, 96, 3)


def test_too_few_of_them_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--golden-images .* has 3 images; a self test needs at least 4"):
        golden(_colours, find_format("none"), _folder(tmp_path / "own", 3))


def test_images_that_ranges_are_measured_on_are_not_measured_on(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "own", 20)
    images = folder_images(folder, 100, 64)
    assert len(images.quantization) == 5
    assert not set(images.quantization) & set(images.calibration)
    assert len(images.calibration) == 15
    assert not len(folder_images(folder, 100).quantization)
