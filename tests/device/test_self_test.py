"""A device notices that it does not compute what was exported, by golden images of which each number has bounds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from safetensors.numpy import load, save

from fedgraft.device import BundleError, Predictor, open_bundle
from fedgraft.device.commands import verify
from fedgraft.fleet.simulated_bundle import bundle_contents, signed, write_files

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
LIMITS = {"min_cosine": 0.99, "images": 8, "min_centred_cosine": 0.95, "min_agreement": 75.0}
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A bundle with eight golden images of plain colours and what its encoder makes of them."""
    made = bundle_contents()
    folder = tmp_path_factory.mktemp("golden") / "b"
    predictor = Predictor(write_files(folder, signed(made, 1, KEY)), remember=False)
    colours = np.random.default_rng(0).integers(0, 256, (8, 3))
    images = np.broadcast_to(colours[:, None, None, :], (8, 6, 5, 3)).astype(np.uint8)
    embeddings = np.stack(
        [predictor.embed(predictor.preprocessing.pixels(Image.fromarray(i))[None])[0] for i in images]
    )
    tensors = {**load(made["golden.safetensors"]), "images": images.copy(), "embeddings": embeddings}
    return {**made, "golden.safetensors": save(tensors)}


def _bundle(
    folder: Path,
    contents: Mapping[str, bytes],
    change: Callable[[Tensors], None] = lambda tensors: None,
    manifest: Mapping[str, Any] | None = None,
    **limits: object,
) -> Path:
    tensors = load(contents["golden.safetensors"])
    change(tensors)
    golden = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    changes = {"golden": {**LIMITS, **limits}, **(manifest or {})}
    return write_files(folder, signed({**contents, "golden.safetensors": golden}, 1, KEY, changes=changes))


def test_a_machine_that_computes_the_same_passes(
    contents: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _bundle(tmp_path / "b", contents)
    found = Predictor(folder).tested()
    assert (found.images, found.agreement, found.warning) == (8, 100.0, None)
    assert found.centred_cosine == pytest.approx(1, abs=1e-5)
    verify(folder)
    assert "8 golden images: 100.0 % with the exporter's class" in capsys.readouterr().out


def test_a_bundle_of_before_has_its_golden_sample_alone(tmp_path: Path) -> None:
    found = Predictor(write_files(tmp_path / "b", signed(bundle_contents(), 1, KEY))).tested()
    assert (found.images, found.centred_cosine, found.agreement) == (0, None, None)
    assert found.cosine > 0.9999


def test_a_difference_that_the_plain_cosine_hides_is_refused(contents: dict[str, bytes], tmp_path: Path) -> None:
    """Half of each embedding's own part is lost and the common part stays: plain cosines stay above 0.9."""

    def blur(tensors: Tensors) -> None:
        kept = tensors["embeddings"]
        mean = kept.mean(axis=0)
        mixed = mean + 0.5 * (kept[::-1] - mean)
        tensors["embeddings"] = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)

    folder = _bundle(tmp_path / "b", contents, blur)
    with pytest.raises(BundleError, match=r"centred cosine of 8 golden images is -?0\.\d+, and at least 0\.95"):
        Predictor(folder).self_test()


def test_another_class_is_a_warning_or_too_many_are_refused(
    contents: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = load(contents["classes.safetensors"])
    first = load(contents["golden.safetensors"])["embeddings"]
    near["class_features"] = first[:3] / np.linalg.norm(first[:3], axis=1, keepdims=True)

    def nudge(tensors: Tensors) -> None:
        """The first image's embedding is nearer to the second class, by so little that its cosine hardly tells."""
        one, two = near["class_features"][0], near["class_features"][1]
        embeddings = tensors["embeddings"].copy()
        embeddings[0] = one + two + 0.02 * (two - one)
        tensors["embeddings"] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    changed = {**contents, "classes.safetensors": save(near)}
    folder = _bundle(tmp_path / "near", changed, nudge, min_agreement=50.0, min_centred_cosine=0.9)
    found = Predictor(folder).tested()
    assert found.agreement == 87.5
    assert found.warning is not None
    verify(folder)
    assert "Warning: 87.5 % of 8 golden images" in capsys.readouterr().out
    strict = _bundle(tmp_path / "strict", changed, nudge, min_agreement=90.0, min_centred_cosine=0.9)
    with pytest.raises(BundleError, match=r"87\.5 % of 8 golden images have its class, and at least 90 % is required"):
        Predictor(strict).self_test()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"images": -1}, "images is -1"),
        ({"images": 65}, "images is 65, not a whole number from 0 to 64"),
        ({"images": 10**30}, "images is"),
        ({"images": True}, "images is True"),
        ({"min_centred_cosine": 0.1}, "min_centred_cosine is 0.1, not a number between 0.9 and 1"),
        ({"min_centred_cosine": None}, "min_centred_cosine is None"),
        ({"min_agreement": 0}, "min_agreement is 0, not a number between 50 and 100"),
        ({"min_agreement": 1e9}, "min_agreement is"),
    ],
)
def test_a_bundle_cannot_make_this_test_void(
    limits: dict[str, Any], said: str, contents: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=said):
        open_bundle(_bundle(tmp_path / "b", contents, **limits))


@pytest.mark.parametrize("saturation", [-1, {"pairs": -1}, {"pairs": 2**60}, {"pairs": "0"}, {}, "many"])
def test_the_number_of_saturating_pairs_has_bounds(
    saturation: object, contents: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="pairs is"):
        open_bundle(_bundle(tmp_path / "b", contents, manifest={"parity": {"saturation": saturation}}))


def test_products_are_exact_on_every_processor_unless_none_can_saturate(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of before, or one that was forced: onnxruntime then takes slower kernels where it has to."""
    import onnxruntime

    seen: dict[str, str] = {}

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            seen[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    for name, parity, exact in (
        ("unknown", None, True),
        ("some", {"saturation": {"pairs": 3}}, True),
        ("none", {"saturation": {"pairs": 0}}, False),
    ):
        seen.clear()
        Predictor(_bundle(tmp_path / name, contents, manifest={"parity": parity}))
        assert ("session.x64quantprecision" in seen) == exact


def _set(name: str, value: np.ndarray) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value

    return change


def _drop(tensors: Tensors) -> None:
    del tensors["images"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("images", np.zeros((8, 4, 4), np.uint8)), "its images are uint8 with shape"),
        (_set("images", np.zeros((8, 0, 4, 3), np.uint8)), "its images are"),
        (_set("images", np.zeros((8, 4, 4, 3), np.float32)), "its images are float32"),
        (_set("images", np.zeros((7, 4, 4, 3), np.uint8)), "it has 7 images; the manifest says 8"),
        (_set("embeddings", np.zeros((7, 3), np.float32)), "its embeddings are float32 with shape"),
        (_set("embeddings", np.full((8, 3), np.nan, np.float32)), "unit norm"),
        (_drop, "images"),
    ],
)
def test_golden_images_of_a_bad_shape_are_one_line(
    change: Callable[[Tensors], None], said: str, contents: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"golden sample of the bundle .* cannot be used: .*{said}") as raised:
        Predictor(_bundle(tmp_path / "b", contents, change)).self_test()
    assert "\n" not in str(raised.value)
