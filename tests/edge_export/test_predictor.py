"""What a device predicts: calibrated, unknown below the threshold, and with either class bank at any time."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from fedgraft.data.examples import Examples
from fedgraft.device import BundleError, Predictor
from fedgraft.device.class_bank import check_labels
from fedgraft.device.tensors import read_tensors
from fedgraft.edge_export.bundle_writer import class_files
from fedgraft.edge_export.export import export_bundle, export_class_bank
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions
from tests.edge_export.conftest import Traced


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1, spinning=False)


@pytest.fixture(scope="module")
def update(run: Path, exported: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class bank alone, of other labels, for the encoder of `exported`."""
    out = tmp_path_factory.mktemp("updates") / "classes"
    options = ClassBankOptions(site="2", labels=("seven", "three", "a cat"), key=key, most_images=32, force=True)
    export_class_bank(run, exported, out, options)
    return out


def test_an_answer_ranks_all_classes_and_sums_to_one(predictor: Predictor, digits: Examples) -> None:
    answer = predictor.predict(digits.load(0))
    assert answer.label == digits.class_names[digits.labels[0]]
    assert answer.probability == answer.probabilities[answer.label] == max(answer.probabilities.values())
    assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert set(answer.probabilities) == set(digits.class_names)


def test_unknown_is_what_is_below_the_threshold_of_the_manifest(predictor: Predictor, digits: Examples) -> None:
    """Most digits are known, and noise, which the backbone never saw, is not."""
    threshold = predictor.bundle.manifest.unknown_below
    assert 0 < threshold < 1
    answers = predictor.predict_many([digits.load(index) for index in range(60)])
    assert [answer.is_unknown for answer in answers] == [answer.probability < threshold for answer in answers]
    assert np.mean([answer.is_unknown for answer in answers]) < 0.3
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    assert predictor.predict(noise).is_unknown


def test_an_image_gets_the_same_answer_whatever_else_is_in_the_batch(predictor: Predictor, digits: Examples) -> None:
    images = [digits.load(index) for index in range(3)] + [Image.new("RGB", (9, 9), (255, 255, 255))]
    assert predictor.predict_many(images) == [predictor.predict(image) for image in images]
    assert predictor.predict_many([]) == []


def test_a_class_bank_is_swapped_without_the_encoder(bundle: Path, update: Path) -> None:
    predictor = Predictor(bundle, threads=1)
    session = predictor._session
    predictor.swap_classes(update)
    assert predictor.labels == ("seven", "three", "a cat")
    assert predictor._session is session
    assert set(predictor.predict(Image.new("RGB", (48, 48))).probabilities) == {"seven", "three", "a cat"}
    assert {path.name for path in update.iterdir()} == {
        "classes.safetensors", "labels.json", "manifest.json", "manifest.sig",
    }  # fmt: skip


def test_a_device_never_goes_back_to_an_older_class_bank(bundle: Path, update: Path) -> None:
    predictor = Predictor(bundle, threads=1)
    predictor.swap_classes(update)
    with pytest.raises(BundleError, match="version 1, older than version 2"):
        predictor.swap_classes(bundle)
    assert predictor.labels == ("seven", "three", "a cat")


def test_a_class_bank_of_another_signer_or_encoder_is_refused(
    exported: Path, run: Path, key: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fedgraft.edge_export.encoder.export_onnx", lambda *_: traced("dense")[1])
    predictor = Predictor(exported, threads=1)
    before = predictor.labels
    stranger = ClassBankOptions(site="0", most_images=16, force=True, key=tmp_path / "other.key")
    export_class_bank(run, exported, tmp_path / "stranger", stranger)
    with pytest.raises(BundleError, match="not by the required key"):
        predictor.swap_classes(tmp_path / "stranger")
    export_bundle(run, tmp_path / "other", BundleOptions(site="0", most_images=16, max_novel_drop=100, key=key))
    with pytest.raises(BundleError, match="for another encoder"):
        predictor.swap_classes(tmp_path / "other")
    with pytest.raises(BundleError, match="without an encoder"):
        Predictor(tmp_path / "stranger")
    assert predictor.labels == before


def test_readers_see_the_old_bank_or_the_new_one_and_nothing_between(bundle: Path, update: Path) -> None:
    predictor = Predictor(bundle, threads=1, spinning=False)
    seen: list[frozenset[str]] = []
    failed: list[BaseException] = []
    first, second = frozenset(predictor.labels), frozenset({"seven", "three", "a cat"})
    begun = threading.Barrier(4)
    image = Image.new("RGB", (48, 48))

    def read() -> None:
        try:
            predictor.predict(image)
            begun.wait(60)
            while not seen or seen[-1] != second:
                answer = predictor.predict(image)
                assert sum(answer.probabilities.values()) == pytest.approx(1)
                seen.append(frozenset(answer.probabilities))
        except BaseException as error:  # a thread's failure is the test's
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    begun.wait(60)
    predictor.swap_classes(update)
    for reader in readers:
        reader.join(60)
    assert not failed
    assert set(seen) <= {first, second}
    assert second in seen


def test_100_classes_of_width_512_are_less_than_256_kilobytes() -> None:
    features = np.random.default_rng(0).normal(size=(100, 512)).astype(np.float32)
    files = class_files([f"class number {index}" for index in range(100)], features, 100.0)
    assert sum(map(len, files.values())) < 256 * 1024


def test_a_bundle_whose_numbers_this_machine_does_not_reproduce(bundle: Path, key: Path) -> None:
    from tests.edge_export.test_bundle import _resigned

    golden = read_tensors((bundle / "golden.safetensors").read_bytes())
    kept = {name: tensor.copy() for name, tensor in golden.items()}
    content = save({**kept, "embedding": -golden["embedding"]})
    (bundle / "golden.safetensors").write_bytes(content)

    def resize(manifest: dict) -> None:
        import hashlib

        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest["files"]["golden.safetensors"] = entry

    _resigned(bundle, resize, key)
    with pytest.raises(BundleError, match="does not reproduce the exporter's embedding"):
        Predictor(bundle).self_test()


@pytest.mark.parametrize(
    "labels",
    [[], ["one"], ["a", "a"], ["a", ""], ["a", " "], ["a", 3], "ab", None, ["a", "b\n"], {"a": 1}],
)
def test_labels_that_cannot_be_used(labels: object) -> None:
    with pytest.raises(ValueError, match="label"):
        check_labels(labels)


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 7),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4),
        ({"a": 3}, 4),
        ([], 0),
    ],
)
def test_a_tensor_file_that_is_not_whole(header: object, values: int) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ValueError, match=r".+"):
        read_tensors(len(text).to_bytes(8, "little") + text + bytes(values))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, (2**60).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"{}"])
def test_a_tensor_file_without_a_header(content: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        read_tensors(content)


def test_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        Predictor(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="neither a directory nor a zip"):
        Predictor(tmp_path / "file")
