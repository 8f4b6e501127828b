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
from fedgraft.data.examples import Examples
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
