"""What a user of a Hugging Face dataset would lose: its labels under their names, and mistakes in one sentence."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples, content_key
from fedgraft.data.sources.source import open_source

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


@pytest.fixture(autouse=True)
def _own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def _plain(colour: tuple[int, int, int], size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("RGB", size, colour)


def _write(folder: Path, images: Sequence[Any], labels: Sequence[int | None], names: Sequence[str]) -> str:
    folder.mkdir()
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    table = datasets.Dataset.from_dict({"picture": list(images), "kind": list(labels)}, features=features)
    table.to_parquet(str(folder / "train.parquet"))
    return f"hf:{folder}"


def _open(spec: str) -> Examples:
    return open_source(spec, seed=0)


def _error(spec: str) -> str:
    with pytest.raises(UserError) as error:
        _open(spec)
    return str(error.value)


def test_a_local_parquet_folder_is_read_with_its_own_order_of_classes(tmp_path: Path) -> None:
    """It decides which classes are base, so that everybody who reads the dataset has the same."""
    images = [_plain(RED), _plain(GREEN), _plain(BLUE), _plain(GREEN)]
    examples = _open(_write(tmp_path / "data", images, [0, 1, 2, 1], ["red_mug", "green_mug", "blue_mug"]))
    assert examples.class_names == ("red mug", "green mug", "blue mug")
    assert [examples.class_names[label] for label in examples.labels] == [
        "red mug",
        "green mug",
        "blue mug",
        "green mug",
    ]
    assert [examples.load(index).getpixel((0, 0)) for index in range(4)] == [RED, GREEN, BLUE, GREEN]
    np.testing.assert_array_equal(examples.keys[1], examples.keys[3])
    assert len(np.unique(examples.keys, axis=0)) == 3


def test_an_image_folder_can_be_read_as_a_dataset(tmp_path: Path, write_image: Any) -> None:
    for name in ("mug", "lamp"):
        write_image(tmp_path / "data" / name / f"{name}.png", RED if name == "mug" else BLUE)
    examples = _open(f"hf:{tmp_path / 'data'}")
    assert examples.class_names == ("lamp", "mug")
    shown = {examples.class_names[examples.labels[index]]: examples.load(index).getpixel((0, 0)) for index in (0, 1)}
    assert shown == {"lamp": BLUE, "mug": RED}


def test_gray_and_transparent_images_load_as_rgb(tmp_path: Path) -> None:
    images = [_plain(RED).convert("L"), _plain(RED).convert("RGBA")]
    examples = _open(_write(tmp_path / "data", images, [0, 1], ["a", "b"]))
    assert [examples.load(index).mode for index in (0, 1)] == ["RGB", "RGB"]


def test_images_of_the_same_bytes_and_another_shape_have_other_keys(tmp_path: Path) -> None:
    """Otherwise the second would be given the features of the first."""
    images = [_plain(RED, (4, 2)), _plain(RED, (2, 4))]
    keys = _open(_write(tmp_path / "data", images, [0, 1], ["a", "b"])).keys
    assert (keys[0] != keys[1]).any()


@pytest.mark.parametrize("missing", [None, -1])
def test_images_without_a_label_are_counted_and_not_given_to_a_class(tmp_path: Path, missing: int | None) -> None:
    spec = _write(tmp_path / "data", [_plain(RED)] * 3, [0, 1, missing], ["a", "b"])
    assert "1 of the 3 images" in _error(spec)


def test_two_classes_of_one_readable_name_are_refused(tmp_path: Path) -> None:
    spec = _write(tmp_path / "data", [_plain(RED), _plain(BLUE)], [0, 1], ["red_mug", "red mug"])
    assert "'red mug'" in _error(spec)


def test_a_broken_image_is_named_by_its_row(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    _plain(RED, (64, 64)).save(buffer, "jpeg")
    whole, half = buffer.getvalue(), buffer.getvalue()[:300]
    images = [{"bytes": content, "path": None} for content in (whole, half, whole)]
    spec = _write(tmp_path / "data", images, [0, 0, 1], ["a", "b"])
    with pytest.raises(UserError, match=r"row 1 of 'train'.*on_bad_image=skip"):
        _open(spec).load(1)
    examples = open_source(spec, 0, {"on_bad_image": "skip"})
    assert examples.labels.tolist() == [0, 1]
    assert [line for line in examples.skipped if "row 1 of 'train'" in line]


@pytest.mark.parametrize(("kept", "lacking"), [("picture", "ClassLabel"), ("kind", "Image")])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path, kept: str, lacking: str) -> None:
    _write(tmp_path / "whole", [_plain(RED), _plain(BLUE)], [0, 1], ["a", "b"])
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_parquet(str(tmp_path / "whole" / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    table.select_columns([kept]).to_parquet(str(tmp_path / "data" / "train.parquet"))
    sentence = _error(f"hf:{tmp_path / 'data'}")
    assert lacking in sentence
    assert f"['{kept}']" in sentence


@pytest.mark.slow
def test_an_unknown_id_offline_is_one_sentence_with_the_id(tmp_path: Path) -> None:
    code = (
        "from fedgraft.data.sources.source import open_source\n"
        "from fedgraft.core.errors import UserError\n"
        "try: open_source('hf:nobody/no-such-dataset', 0)\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nobody/no-such-dataset" in done.stdout
    assert done.stdout.count("\n") == 1


# --- splits, domains and writers ------------------------------------------------------------------


def _numbered(count: int, begin: int = 0) -> list[Image.Image]:
    return [_plain((number * 20, 10, 10)) for number in range(begin, begin + count)]


def _publish(folder: Path, features: dict[str, Any], **splits: dict[str, list[Any]]) -> str:
    """Parquet files as on the hub: data/SPLIT-00000-of-00001.parquet."""
    (folder / "data").mkdir(parents=True)
    for split, columns in splits.items():
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return f"hf:{folder}"


FEMNIST = {
    "image": datasets.Image(), "writer_id": datasets.Value("string"), "hsf_id": datasets.Value("int64"),
    "character": datasets.ClassLabel(names=["0", "1", "A", "a"]),
}  # fmt: skip
PACS = {
    "image": datasets.Image(), "domain": datasets.Value("string"),
    "label": datasets.ClassLabel(names=["dog", "elephant", "giraffe"]),
}  # fmt: skip
OFFICE_HOME = {**PACS, "label": datasets.ClassLabel(names=["Alarm_Clock", "Backpack"])}
CALTECH101 = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["accordion", "car_side"])}
ISIC = {
    "image": datasets.Image(), "center": datasets.Value("int64"),
    "label": datasets.ClassLabel(names=["MEL", "NV", "BCC"]),
}  # fmt: skip
CIFAR10 = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["airplane", "automobile"])}


def test_femnist_has_its_writers(tmp_path: Path) -> None:
    columns = {"image": _numbered(4), "writer_id": ["f2_10", "f2_10", "f0_14", "f0_14"], "hsf_id": [0, 0, 1, 1]}
    examples = _open(_publish(tmp_path / "data", FEMNIST, train={**columns, "character": [3, 0, 1, 2]}))
    assert examples.class_names == ("0", "1", "A", "a")
    assert examples.labels.tolist() == [3, 0, 1, 2]
    assert examples.site_names == ("f0_14", "f2_10")
    assert examples.sites is not None
    assert examples.sites.tolist() == [1, 1, 0, 0]
    assert examples.splits is None


@pytest.mark.parametrize(
    ("features", "names"), [(PACS, ["art_painting", "photo"]), (OFFICE_HOME, ["Art", "Real World"])]
)
def test_pacs_and_office_home_have_their_domains(features: Any, names: list[str], tmp_path: Path) -> None:
    columns = {"image": _numbered(4), "domain": [names[1], names[0], names[0], names[1]], "label": [0, 0, 1, 1]}
    examples = _open(_publish(tmp_path / "data", features, train=columns))
    assert examples.domain_names == tuple(names)
    assert examples.domains.tolist() == [1, 0, 0, 1]
    assert examples.class_names == tuple(name.replace("_", " ") for name in features["label"].names[:2])


def test_a_class_without_images_is_left_out_and_told(tmp_path: Path) -> None:
    columns = {"image": _numbered(2), "domain": ["photo", "photo"], "label": [0, 2]}
    examples = _open(_publish(tmp_path / "data", PACS, train=columns))
    assert examples.class_names == ("dog", "giraffe")
    assert examples.labels.tolist() == [0, 1]
    assert examples.skipped == ("the class 'elephant' has no images",)


def test_fed_isic2019_has_its_centers_and_its_own_test_images(tmp_path: Path) -> None:
    train = {"image": _numbered(3), "center": [5, 0, 10], "label": [0, 1, 2]}
    test = {"image": _numbered(2, 5), "center": [0, 5], "label": [1, 0]}
    examples = _open(_publish(tmp_path / "data", ISIC, train=train, test=test))
    assert examples.site_names == ("0", "5", "10")
    assert examples.sites is not None
    assert examples.sites.tolist() == [1, 0, 2, 0, 1]
    assert examples.splits is not None
    assert examples.splits.tolist() == [0, 0, 0, 2, 2]
    assert examples.load(4).getpixel((0, 0)) == (120, 10, 10)


@pytest.mark.parametrize(("features", "image"), [(CALTECH101, "image"), (CIFAR10, "img")])
def test_the_datasets_own_test_split_is_the_default(features: Any, image: str, tmp_path: Path) -> None:
    spec = _publish(
        tmp_path / "data", features,
        train={image: _numbered(2), "label": [1, 0]}, test={image: _numbered(2, 4), "label": [0, 1]},
        validation={image: _numbered(2, 8), "label": [0, 1]},
    )  # fmt: skip
    examples = _open(spec)
    assert examples.splits is not None
    assert dict(zip(*map(list, np.unique(examples.splits, return_counts=True)), strict=True)) == {0: 2, 1: 2, 2: 2}
    tested = open_source(spec, 0, {"split": "test"})
    assert tested.splits is not None
    assert tested.splits.tolist() == [2, 2]
    assert open_source(spec, 0, {"split": "train"}).splits is None


def test_a_split_that_is_for_none_of_the_three_is_left_out_and_can_be_asked_for(tmp_path: Path) -> None:
    both = {"label": [0, 1]}
    spec = _publish(
        tmp_path / "data", CALTECH101, train={"image": _numbered(2), **both}, extra={"image": _numbered(2, 4), **both}
    )
    assert len(_open(spec)) == 2
    assert _open(spec).skipped == ("the split 'extra' is for neither training, validation nor testing",)
    assert len(open_source(spec, 0, {"split": "train,extra"})) == 4
    assert "Did you mean 'extra'?" in str(_raised(spec, {"split": "extras"}))


def _raised(spec: str, values: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as error:
        open_source(spec, 0, values)
    return error.value


def test_several_columns_of_labels_are_a_question(tmp_path: Path) -> None:
    features = {
        "img": datasets.Image(), "coarse_label": datasets.ClassLabel(names=["fish", "flowers"]),
        "fine_label": datasets.ClassLabel(names=["shark", "orchid"]),
    }  # fmt: skip
    columns = {"img": _numbered(2), "coarse_label": [0, 1], "fine_label": [1, 0]}
    spec = _publish(tmp_path / "data", features, train=columns)
    assert "coarse_label, fine_label. Choose one with --set label_column=NAME" in _error(spec)
    assert open_source(spec, 0, {"label_column": "fine_label"}).class_names == ("shark", "orchid")
    assert "Did you mean 'fine_label'?" in str(_raised(spec, {"label_column": "fine_labels"}))
    assert "not images" in str(_raised(spec, {"label_column": "fine_label", "image_column": "coarse_label"}))


def test_labels_can_be_text(tmp_path: Path) -> None:
    features = {"photo": datasets.Image(), "label": datasets.Value("string"), "style": datasets.Value("string")}
    columns = {"photo": _numbered(3), "label": ["green_mug", "lamp", "green_mug"], "style": ["a", "b", "b"]}
    spec = _publish(tmp_path / "data", features, train=columns)
    examples = open_source(spec, 0, {"domain_column": "style"})
    assert examples.class_names == ("green mug", "lamp")
    assert examples.labels.tolist() == [0, 1, 0]
    assert examples.domain_names == ("a", "b")


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    spec = _write(tmp_path / "data", [_plain(RED), _plain(GREEN)], [0, 0], ["red_mug"])
    assert "only one class" in _error(spec)


STRANGE = ['{0!r} of "q"', "colt's foot", "x" * 300, "\u0427\u0430\u0448\u043a\u0430", "\u676f\u5b50"]


@pytest.mark.parametrize("label", [datasets.ClassLabel(names=STRANGE), datasets.Value("string")])
def test_a_strange_class_name_is_read_as_it_is(label: Any, tmp_path: Path) -> None:
    given = list(range(5)) if isinstance(label, datasets.ClassLabel) else STRANGE
    features = {"image": datasets.Image(), "label": label}
    spec = _publish(tmp_path / "data", features, train={"image": _numbered(5), "label": given})
    examples = open_source(spec, 0)
    assert [examples.class_names[position] for position in examples.labels] == STRANGE


def test_a_label_that_is_missing_in_one_split_keeps_its_place(tmp_path: Path) -> None:
    names = ["b", "a", "c"]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    numbered = _numbered(5)
    train, test = {"image": numbered[:3], "label": [0, 1, 2]}, {"image": numbered[3:], "label": [2, 0]}
    examples = open_source(_publish(tmp_path / "data", features, train=train, test=test), 0)
    assert examples.class_names == ("b", "a", "c")
    assert examples.labels.tolist() == [0, 1, 2, 2, 0]


@pytest.mark.parametrize(
    ("written", "loaded"),
    [
        ("me/photos", ("me/photos", None, None)),
        ("me/photos@v1.0", ("me/photos", "v1.0", None)),
        ("me/photos:small", ("me/photos", None, "small")),
        ("me/photos@0a1b:small.v2", ("me/photos", "0a1b", "small.v2")),
    ],
)
def test_a_revision_and_a_configuration_are_passed_on(
    written: str, loaded: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, ...]] = []

    def load(path: str, **more: str | None) -> None:
        asked.append((path, more.get("revision"), more.get("name")))
        raise OSError("that is all")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert f"The dataset {written!r} cannot be loaded: that is all" in _error(f"hf:{written}")
    assert asked == [loaded]


def test_images_are_keyed_by_their_bytes_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _publish(tmp_path / "data", CALTECH101, train={"image": _numbered(2), "label": [0, 1]})
    monkeypatch.setattr(datasets.Image, "decode_example", None)
    buffer = io.BytesIO()
    _numbered(1)[0].save(buffer, "png")
    assert _open(spec).keys[0].tolist() == content_key(buffer.getvalue()).tolist()
