"""What a user would lose: images encoded once, whatever is killed, changed, copied or shared between processes."""

import fcntl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fedgraft.backbones import Backbone, feature_store
from fedgraft.backbones.feature_store import FeatureStore, require_rows, view_image, view_keys
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.core.errors import UserError
from fedgraft.data.examples import content_key

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DIM, BATCH = 5, 4


class CountingBackbone(Backbone):
    """Features that follow from an image's red, and the list of what was encoded; no text tower."""

    def __init__(self, fingerprint: str = "f" * 64, preprocessing: str = "p" * 64, killed_at_batch: int = 0) -> None:
        self.fingerprint, self.preprocessing, self.dim = fingerprint, preprocessing, DIM
        self.precision = "float32"
        self.encoded: list[int] = []
        self.on_batch = lambda: None
        self._batches, self._killed_at_batch = 0, killed_at_batch

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([float(np.asarray(image)[0, 0, 0]) for image in images])

    def encode_images(self, pixels: Tensor) -> Tensor:
        self._batches += 1
        self.on_batch()
        if self._batches == self._killed_at_batch:
            raise KeyboardInterrupt
        self.encoded += [int(value) for value in pixels]
        return torch.from_numpy(_expected([int(value) for value in pixels]))


def _expected(values: Sequence[int]) -> np.ndarray:
    return np.sin(np.outer(np.asarray(values) + 1.0, np.arange(1, DIM + 1))).astype(np.float32)


def _keys(values: Sequence[int]) -> np.ndarray:
    return np.stack([content_key(bytes([value])) for value in values])


def _fill(store: FeatureStore, values: Sequence[int]) -> int:
    return store.fill(_keys(values), lambda position: Image.new("RGB", (2, 2), (values[position], 0, 0)))


def _stored(store: FeatureStore, values: Sequence[int]) -> np.ndarray:
    return store.vectors()[require_rows(store, _keys(values))]


@pytest.fixture(autouse=True, scope="module")
def _small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_store, "_BATCH", BATCH)
        yield


def test_an_image_is_encoded_once_over_fills_and_over_stores(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    store, another_process = FeatureStore(tmp_path, backbone), FeatureStore(tmp_path, backbone)
    assert _fill(store, range(10)) == 10
    assert _fill(store, range(10)) == 0
    assert _fill(another_process, range(12)) == 2
    assert backbone.encoded == list(range(12))
    np.testing.assert_array_equal(_stored(store, range(12)), _expected(range(12)))
    np.testing.assert_array_equal(_stored(another_process, range(12)), _expected(range(12)))


def test_two_processes_that_fill_at_once_share_the_work(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    second = threading.Thread(target=lambda: _fill(FeatureStore(tmp_path, backbone), range(6, -1, -1)))

    def start_the_second() -> None:
        backbone.on_batch = lambda: None
        second.start()

    backbone.on_batch = start_the_second
    _fill(FeatureStore(tmp_path, backbone), range(10))
    second.join()
    assert sorted(backbone.encoded) == list(range(10))
    np.testing.assert_array_equal(_stored(FeatureStore(tmp_path, backbone), range(10)), _expected(range(10)))


@UNTIMED
@given(values=st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_copies_of_an_image_are_encoded_once(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    backbone = CountingBackbone()
    store = FeatureStore(tmp_path_factory.mktemp("cache"), backbone)
    assert _fill(store, values) == len(set(values))
    assert sorted(backbone.encoded) == sorted(set(values))
    np.testing.assert_array_equal(_stored(store, values), _expected(values))


def test_only_an_image_whose_content_changed_is_encoded_again(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    store = FeatureStore(tmp_path, backbone)
    _fill(store, [1, 2, 3])
    _fill(store, [1, 99, 3])
    assert backbone.encoded == [1, 2, 3, 99]
    np.testing.assert_array_equal(_stored(store, [1, 99, 3]), _expected([1, 99, 3]))


def test_a_fill_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second = CountingBackbone(killed_at_batch=2), CountingBackbone()
    with pytest.raises(KeyboardInterrupt):
        _fill(FeatureStore(tmp_path, first), range(10))
    store = FeatureStore(tmp_path, second)
    assert _fill(store, range(10)) == 10 - BATCH
    assert sorted(first.encoded + second.encoded) == list(range(10))
    np.testing.assert_array_equal(_stored(store, range(10)), _expected(range(10)))


@UNTIMED
@given(keys_bytes=st.integers(0, 10 * 32), vectors_bytes=st.integers(0, 10 * DIM * 4))
def test_files_torn_at_any_byte_give_the_same_vectors_after_a_fill(
    tmp_path_factory: pytest.TempPathFactory, keys_bytes: int, vectors_bytes: int
) -> None:
    """Whatever a power cut left of the two files, and even if it is not a whole row."""
    root = tmp_path_factory.mktemp("cache")
    _fill(FeatureStore(root, CountingBackbone()), range(10))
    backbone = CountingBackbone()
    store = FeatureStore(root, backbone)
    for name, length in (("keys.bin", keys_bytes), ("vectors.f32", vectors_bytes)):
        with (store.folder / name).open("r+b") as file:
            file.truncate(length)
    whole = min(keys_bytes // 32, vectors_bytes // (DIM * 4))
    assert store.vectors().shape == (whole, DIM)
    assert (store.rows(_keys(range(10))) >= 0).sum() == whole
    assert _fill(store, range(10)) == 10 - whole
    np.testing.assert_array_equal(_stored(store, range(10)), _expected(range(10)))


def test_vectors_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, CountingBackbone())
    assert store.vectors().shape == (0, DIM)
    _fill(store, range(3))
    vectors = store.vectors()
    assert isinstance(vectors, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        vectors[0] = 0


def test_an_image_that_was_never_encoded_is_counted_as_missing(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, CountingBackbone())
    _fill(store, [1, 2])
    assert store.rows(_keys([2, 7, 1])).tolist() == [1, -1, 0]
    with pytest.raises(UserError, match="lacks 2 of 3 images"):
        require_rows(store, _keys([1, 8, 9]))


def test_progress_tells_how_many_of_how_many(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    store = FeatureStore(tmp_path, CountingBackbone())
    store.fill(_keys(range(10)), lambda _: Image.new("RGB", (2, 2)), lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_another_backbone_or_preprocessing_has_a_store_of_its_own(tmp_path: Path) -> None:
    """Features of other weights or another resolution under the same key would go unnoticed."""
    backbones = [CountingBackbone(), CountingBackbone(fingerprint="e" * 64), CountingBackbone(preprocessing="q" * 64)]
    stores = [FeatureStore(tmp_path, backbone) for backbone in backbones]
    assert len({store.folder for store in stores}) == 3
    assert [_fill(store, [1, 2]) for store in stores] == [2, 2, 2]


# --- augmented views ------------------------------------------------------------------------------


def _photo(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_view_0_is_the_image_itself() -> None:
    keys, image = _keys([1, 2]), _photo()
    assert view_keys(keys, 0, seed=3) is keys
    assert view_image(image, keys[0], 0, seed=3) is image


@UNTIMED
@given(
    places=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12, unique=True
    )
)
def test_every_image_view_and_seed_has_a_key_of_its_own(places: list[tuple[int, int, int]]) -> None:
    keys = {view_keys(_keys([value]), view, seed).tobytes() for value, view, seed in places}
    assert len(keys) == len({place if place[1] else place[:2] for place in places})


def test_a_view_is_decided_by_image_number_and_seed() -> None:
    key, other = _keys([1, 2])
    shown = {
        name: view_image(_photo(), of, view, seed).tobytes()
        for name, of, view, seed in (
            ("first", key, 1, 0),
            ("again", key, 1, 0),
            ("other view", key, 2, 0),
            ("other seed", key, 1, 1),
            ("other image", other, 1, 0),
        )
    }
    assert shown["first"] == shown["again"]
    assert len(set(shown.values())) == 4


@UNTIMED
@given(width=st.integers(1, 50), height=st.integers(1, 50), view=st.integers(1, 3))
def test_a_view_has_the_size_of_its_image(width: int, height: int, view: int) -> None:
    assert view_image(_photo(width, height), _keys([1])[0], view, seed=0).size == (width, height)


def test_an_image_and_its_views_are_encoded_once_each(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    store, keys = FeatureStore(tmp_path, backbone), _keys([1, 2, 3])
    for _ in range(2):
        for view in range(3):
            store.fill(view_keys(keys, view, seed=0), lambda position: Image.new("RGB", (2, 2)))
    assert len(backbone.encoded) == 9


def test_a_run_that_has_its_features_does_not_wait_for_one_that_adds_others(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, CountingBackbone())
    _fill(store, [1, 2])
    with (store.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _fill(store, [2, 1]) == 0


# --- other forms ----------------------------------------------------------------------------------


def test_each_form_has_a_store_of_its_own_with_the_rows_that_the_backbone_gives(mini: Backbone, tmp_path: Path) -> None:
    forms = [
        FEATURES,
        Representation(dtype="float16"),
        Representation(layer=2),
        Representation(layer=2, dtype="float16"),
        Representation(patches=True),
        Representation(patches=True, dtype="float16"),
    ]
    keys, images = _keys([1, 2]), [_photo(50, 50), _photo(64, 40)]
    pixels = mini.preprocess(images)
    stores = [FeatureStore(tmp_path, mini, form) for form in forms]
    assert len({store.folder for store in stores}) == len(forms)
    for form, store in zip(forms, stores, strict=True):
        store.fill(keys, lambda position: images[position])
        again = FeatureStore(tmp_path, mini, form)
        found, expected = again.vectors(), mini.represent_images(pixels, form).numpy()
        assert found.dtype == np.dtype(form.dtype)
        np.testing.assert_array_equal(found, expected.astype(form.dtype))
        rows = require_rows(again, keys)
        np.testing.assert_allclose(again.features(rows), mini.encode_images(pixels).numpy(), atol=2e-3)
    bytes_of = [
        (store.folder / f"vectors.f{8 * np.dtype(form.dtype).itemsize}").stat().st_size
        for form, store in zip(forms, stores, strict=True)
    ]
    assert all(half * 2 == whole for whole, half in zip(bytes_of[::2], bytes_of[1::2], strict=True))


def test_patches_of_an_inner_layer_are_a_mistake_of_the_programmer() -> None:
    with pytest.raises(ValueError, match="last layer"):
        Representation(layer=1, patches=True)
