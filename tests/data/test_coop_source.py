"""What a reader of a published table would lose: CoOp's splits, class order and templates, from its own folders.

Each mock has the names of the authors' page, and what is read is compared with the authors' rule, stated again here.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import SPLIT_NAMES, Examples, content_key
from fedgraft.data.sources.source import open_source
from fedgraft.methods.plan import Plan

Rows = list[tuple[str, int, str]]
TEMPLATES = {
    "Caltech101": "a photo of a {}.", "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.", "OxfordFlowers": "a photo of a {}, a type of flower.",
    "Food101": "a photo of {}, a type of food.", "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "SUN397": "a photo of a {}.", "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.", "UCF101": "a photo of a person doing {}.",
    "ImageNet": "a photo of a {}.",
}  # fmt: skip
SPLIT_FILES: dict[str, tuple[str, str, list[str], str]] = {
    "Caltech101": ("caltech-101", "101_ObjectCategories", ["face", "leopard", "yin_yang"], "{name}/image_{i:04d}.jpg"),
    "OxfordPets": ("oxford_pets", "images", ["abyssinian", "american_bulldog", "beagle"], "{name}_{i}.jpg"),
    "StanfordCars": ("stanford_cars", "", ["2000 AM General Hummer", "2012 Acura RL"], "cars_{half}/{i:05d}.jpg"),
    "OxfordFlowers": ("oxford_flowers", "jpg", ["pink primrose", "globe thistle", "colt's foot"], "image_{i:05d}.jpg"),
    "Food101": ("food-101", "images", ["apple_pie", "baby_back_ribs", "baklava"], "{name}/{i}.jpg"),
    "SUN397": ("sun397", "SUN397", ["abbey", "outdoor apartment", "indoor bow window"], "a/{name}/sun_{i}.jpg"),
    "DescribableTextures": ("dtd", "images", ["banded", "blotchy", "zigzagged"], "{name}/{name}_{i:04d}.jpg"),
    "EuroSAT": ("eurosat", "2750", ["Annual Crop Land", "Forest", "Sea or Lake"], "Class{label}/Class{label}_{i}.jpg"),
    "UCF101": ("ucf101", "UCF-101-midframes", ["Apply_Eye_Makeup", "Yo_Yo"], "{name}/v_{name}_g{i:02d}_c01.jpg"),
}  # fmt: skip
CLASSNAMES = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile", "n04356056": "sunglasses"}


def _image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number % 256, 90, 7)).save(path, comment=f"image {number}")


def _mock_split(root: Path, name: str, per_split: int = 2) -> tuple[Path, dict[str, Rows]]:
    """A data set with a split file: labels are not in the order of the rows, as in the authors' shuffled files."""
    folder, images, classes, pattern = SPLIT_FILES[name]
    split: dict[str, Rows] = {}
    number = 0
    for part in SPLIT_NAMES:
        split[part] = []
        for _ in range(per_split):
            for label in reversed(range(len(classes))):
                number += 1
                half = "test" if part == "test" else "train"
                path = pattern.format(name=classes[label].replace(" ", "_"), i=number, half=half, label=label)
                _image(root / folder / images / path, number)
                split[part].append((path, label, classes[label]))
    (root / folder / f"split_zhou_{name}.json").write_text(json.dumps(split))
    return root / folder, split


def _open(path: Path, **values: Any) -> Examples:
    return open_source(f"coop:{path}", 0, values)


def _error(path: Path, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        _open(path, **values)
    return str(error.value)


def _keys(paths: Iterable[Path]) -> list[list[int]]:
    """The content keys of files, by which an example is known."""
    return [content_key(path.read_bytes()).tolist() for path in paths]


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_split_file_is_read_by_the_authors_rule(name: str, tmp_path: Path) -> None:
    root, split = _mock_split(tmp_path, name)
    images = root / SPLIT_FILES[name][1]
    examples = _open(root)
    rows = [(part, *row) for part in SPLIT_NAMES for row in split[part]]
    by_label = {label: class_name for _, _, label, class_name in rows}
    assert examples.class_names == tuple(by_label[label].replace("_", " ") for label in sorted(by_label))
    assert examples.labels.tolist() == [label for _, _, label, _ in rows]
    assert examples.splits is not None
    assert [SPLIT_NAMES[value] for value in examples.splits] == [part for part, *_ in rows]
    assert examples.templates == (TEMPLATES[name],)
    assert examples.keys.tolist() == _keys(images / path for _, path, _, _ in rows)


def test_the_first_half_of_the_labels_rounded_up_is_base(tmp_path: Path) -> None:
    """CoOp halves by label and not by name, which are different orders in EuroSAT, Flowers102 and UCF101."""
    root, split = _mock_split(tmp_path, "OxfordFlowers", per_split=3)
    config = RunConfig(data=f"coop:{root}", sites=2, shots=2)
    plan = Plan.of(config)
    fold = plan.split(_open(root)).folds[0]
    labels = sorted({label for _, label, _ in split["train"]})
    assert fold.train_classes == tuple(labels[: -(-len(labels) // 2)])
    assert fold.scopes[2].classes == tuple(labels[-(-len(labels) // 2) :])
    assert [_open(root).class_names[label] for label in fold.train_classes] == ["pink primrose", "globe thistle"]


def test_only_training_images_train_and_the_split_that_is_asked_for_is_measured(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "Food101", per_split=3)
    examples = _open(root)
    for evaluate_on in ("test", "val"):
        config = RunConfig(data=f"coop:{root}", sites=2, shots=0, evaluate_on=evaluate_on)
        split = Plan.of(config).split(examples)
        assert examples.splits is not None
        assert set(examples.splits[split.trained].tolist()) == {0}
        tested = np.concatenate([test for share in split.folds[0].sites for test in share.tests.values()])
        assert {SPLIT_NAMES[value] for value in examples.splits[tested]} == {evaluate_on}


def test_caltechs_two_dropped_folders_are_not_read(tmp_path: Path) -> None:
    root, split = _mock_split(tmp_path, "Caltech101")
    for dropped in ("BACKGROUND_Google", "Faces_easy"):
        _image(root / "101_ObjectCategories" / dropped / "image_0001.jpg", 250)
    examples = _open(root)
    assert len(examples) == sum(map(len, split.values()))
    assert "BACKGROUND Google" not in examples.class_names


def _mock_aircraft(root: Path) -> Path:
    folder = root / "fgvc_aircraft"
    folder.mkdir()
    (folder / "variants.txt").write_text("A300B4\n707-320\nBAE 146-200\n")
    listed = {
        "train": ["0000001 707-320", "0000002 BAE 146-200", "0000003 A300B4"], "val": ["0000004 BAE 146-200"],
        "test": ["0000005 A300B4", "0000006 707-320"],
    }  # fmt: skip
    for split, lines in listed.items():
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            _image(folder / "images" / f"{line.split()[0]}.jpg", int(line.split()[0]))
    return folder


def test_aircraft_is_read_from_its_text_files(tmp_path: Path) -> None:
    examples = _open(_mock_aircraft(tmp_path))
    assert examples.class_names == ("A300B4", "707-320", "BAE 146-200")
    assert examples.labels.tolist() == [1, 2, 0, 2, 0, 1]
    assert examples.splits is not None
    assert examples.splits.tolist() == [0, 0, 0, 1, 2, 2]
    assert examples.templates == (TEMPLATES["FGVCAircraft"],)
    images = tmp_path / "fgvc_aircraft" / "images"
    assert examples.keys.tolist() == _keys(images / f"{number:07d}.jpg" for number in (1, 2, 3, 4, 5, 6))


def _class_folders(folder: Path, names: Iterable[str], ending: str, first: int, each: int = 2) -> None:
    number = first
    for name in names:
        for _ in range(each):
            _image(folder / name / f"ILSVRC2012_{number:08d}{ending}", number)
            number += 1


def _write_classnames(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{key} {name}\n" for key, name in CLASSNAMES.items()))


def test_imagenet_trains_on_train_and_is_tested_on_val(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    _write_classnames(root)
    _class_folders(root / "images" / "train", CLASSNAMES, ".JPEG", 0, each=3)
    _class_folders(root / "images" / "val", CLASSNAMES, ".JPEG", 100)
    examples = _open(root)
    assert examples.class_names == tuple(CLASSNAMES[folder] for folder in sorted(CLASSNAMES))
    assert examples.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [0, 0, 1, 1, 2, 2, 3, 3]
    assert examples.splits is not None
    assert examples.splits.tolist() == [0] * 12 + [2] * 8
    plan = Plan.of(RunConfig(data=f"coop:{root}", sites=2, evaluate_on="val"))
    with pytest.raises(UserError, match="has no such images; its splits are train and test"):
        plan.split(examples)


def test_a_class_that_imagenets_val_lacks_keeps_the_labels_of_the_others(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    _write_classnames(root)
    _class_folders(root / "images" / "train", CLASSNAMES, ".JPEG", 0)
    _class_folders(root / "images" / "val", [name for name in CLASSNAMES if name != "n03773504"], ".JPEG", 100)
    assert _open(root).labels[-6:].tolist() == [0, 0, 2, 2, 3, 3]


def _sketch(root: Path) -> Path:
    _class_folders(root / "imagenet-sketch" / "images", CLASSNAMES, ".JPEG", 0)
    return root / "imagenet-sketch"


def _adversarial(root: Path) -> Path:
    folder = root / "imagenet-adversarial" / "imagenet-a"
    _class_folders(folder, ["n01440764", "n04356056"], ".jpg", 0)
    (folder / "README.txt").write_text("about")
    return root / "imagenet-adversarial"


def _rendition(root: Path) -> Path:
    folder = root / "imagenet-rendition" / "imagenet-r"
    _class_folders(folder, ["n04356056", "n01440764"], ".jpg", 0)
    (folder / "README.txt").write_text("about")
    return root / "imagenet-rendition"


def _v2(root: Path) -> Path:
    _class_folders(root / "imagenetv2" / "imagenetv2-matched-frequency-format-val", ["0", "1", "2", "3"], ".jpeg", 0)
    return root / "imagenetv2"


@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (_sketch, ["tench", "missile", "missile", "sunglasses"]),
        (_adversarial, ["tench", "sunglasses"]),
        (_rendition, ["tench", "sunglasses"]),
        (_v2, ["tench", "missile", "missile", "sunglasses"]),
    ],
)
def test_a_variant_of_imagenet_is_for_testing_only(
    make: Callable[[Path], Path], classes: list[str], tmp_path: Path
) -> None:
    root = make(tmp_path)
    _write_classnames(root)
    examples = _open(root)
    assert examples.class_names == tuple(classes)
    assert examples.labels.tolist() == [label for label in range(len(classes)) for _ in range(2)]
    assert examples.splits is not None
    assert set(examples.splits.tolist()) == {2}
    assert examples.templates == ("a photo of a {}.",)


def test_imagenet_v2_has_its_folders_in_the_order_of_numbers(tmp_path: Path) -> None:
    """As text, 10 stands between 1 and 2, and every later class would have another's name."""
    root = tmp_path / "imagenetv2"
    root.mkdir()
    (root / "classnames.txt").write_text("".join(f"n{number:08d} class {number}\n" for number in range(12)))
    _class_folders(root / "imagenetv2-matched-frequency-format-val", map(str, range(12)), ".jpeg", 0, each=1)
    examples = _open(root)
    assert examples.class_names == tuple(f"class {number}" for number in range(12))
    folder = root / "imagenetv2-matched-frequency-format-val"
    for label, key in zip(examples.labels, examples.keys, strict=True):
        assert [key.tolist()] == _keys((folder / str(label)).iterdir())


# --- which data set -------------------------------------------------------------------------------


def test_a_renamed_folder_is_recognized_by_its_split_file_or_told_by_name(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "EuroSAT")
    renamed = root.rename(tmp_path / "satellite")
    assert _open(renamed).templates == (TEMPLATES["EuroSAT"],)
    assert _open(renamed, dataset="eurosat").templates == (TEMPLATES["EuroSAT"],)


def test_the_folder_above_needs_a_name(tmp_path: Path) -> None:
    _mock_split(tmp_path, "EuroSAT")
    _mock_split(tmp_path, "UCF101")
    assert "eurosat, ucf101" in _error(tmp_path)
    assert _open(tmp_path, dataset="UCF101").class_names == ("Apply Eye Makeup", "Yo Yo")


def test_what_is_none_of_the_data_sets_is_told_which_there_are(tmp_path: Path) -> None:
    assert "--set dataset=NAME" in _error(tmp_path)
    assert "Did you mean 'Food101'?" in _error(tmp_path, dataset="food1")
    assert "does not exist" in _error(tmp_path / "nowhere")


# --- mistakes -------------------------------------------------------------------------------------


def _rewritten(root: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / f"split_zhou_{name}.json"
    split = json.loads(path.read_text())
    change(split)
    path.write_text(json.dumps(split))


def test_a_missing_split_file_is_named_with_where_it_comes_from(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "DescribableTextures")
    (root / "split_zhou_DescribableTextures.json").unlink()
    sentence = _error(root)
    assert "split_zhou_DescribableTextures.json" in sentence
    assert "DATASETS.md" in sentence


def test_a_split_file_that_names_a_missing_image_is_told_or_left_out(tmp_path: Path) -> None:
    root, split = _mock_split(tmp_path, "Food101")
    gone = root / "images" / split["val"][1][0]
    gone.unlink()
    sentence = _error(root)
    assert "1 of the 18 images" in sentence
    assert str(gone) in sentence
    examples = _open(root, on_bad_image="skip")
    assert len(examples) == 17
    assert any(str(gone) in line for line in examples.skipped)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda split: split.pop("val"), "no images under 'val'"),
        (lambda split: split["train"].append(["x.jpg", 1]), "malformed"),
        (lambda split: split["train"].append(["/etc/x.jpg", 1, "baby_back_ribs"]), "outside the folder"),
        (lambda split: split["train"].append(["../../x.jpg", 1, "baby_back_ribs"]), "outside the folder"),
        (lambda split: split["test"][0].__setitem__(2, "pizza"), "both 'baklava' and 'pizza'"),
        (lambda split: split["test"].append([split["test"][0][0], 0, "apple_pie"]), "has two labels"),
    ],
)
def test_a_malformed_split_file_is_one_sentence(change: Any, said: str, tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "Food101")
    _rewritten(root, "Food101", change)
    sentence = _error(root)
    assert said in sentence
    assert "split_zhou_Food101.json" in sentence or "Food" in sentence or str(root) in sentence


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "Food101")

    def keep_one_class(split: dict[str, Rows]) -> None:
        split.update({part: [row for row in rows if row[1] == 0] for part, rows in split.items()})

    _rewritten(root, "Food101", keep_one_class)
    assert "only one class" in _error(root)


def test_a_label_that_is_missing_in_one_split_keeps_its_place(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "Food101")
    _rewritten(root, "Food101", lambda split: split.update(val=[row for row in split["val"] if row[1] != 0]))
    assert _open(root).class_names == ("apple pie", "baby back ribs", "baklava")


STRANGE = ['{0!r} of "q"', "colt's foot", "\u0427\u0430\u0448\u043a\u0430", "\u676f\u5b50", "x" * 300]


def test_a_strange_class_name_is_read_as_it_is(tmp_path: Path) -> None:
    root, split = _mock_split(tmp_path, "Food101")
    _rewritten(
        root,
        "Food101",
        lambda split: split.update(
            train=[
                [row[0], label, name] for row, (label, name) in zip(split["train"], enumerate(STRANGE), strict=False)
            ],
            val=[],
            test=[[split["test"][0][0], 0, STRANGE[0]]],
        ),
    )
    examples = _open(root)
    assert examples.class_names == tuple(STRANGE)
    assert examples.templates[0].format(STRANGE[0]) == 'a photo of {0!r} of "q", a type of food.'
    assert split["train"][0][1] == 2


def test_a_base_class_without_training_images_is_named(tmp_path: Path) -> None:
    root, _ = _mock_split(tmp_path, "Food101")
    _rewritten(root, "Food101", lambda split: split.update(train=[row for row in split["train"] if row[1] != 1]))
    config = RunConfig(data=f"coop:{root}", sites=2)
    with pytest.raises(UserError, match="'baby back ribs'"):
        Plan.of(config).split(_open(root))


def test_an_image_in_training_and_testing_does_not_train(tmp_path: Path) -> None:
    root, split = _mock_split(tmp_path, "Food101", per_split=3)
    copied = root / "images" / split["test"][0][0]
    (root / "images" / split["train"][0][0]).write_bytes(copied.read_bytes())
    examples = _open(root)
    trained = Plan.of(RunConfig(data=f"coop:{root}", sites=2, shots=0)).split(examples).trained
    assert 0 not in trained
    assert {1, 2} & set(trained.tolist())
