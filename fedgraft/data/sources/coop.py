"""CoOp's data sets as its page DATASETS.md lays them out (Zhou et al., IJCV 2022): splits, class order and template.

Eleven for training and testing, and four variants of ImageNet for testing. The rules of reading are those of the
authors' `datasets/*.py`, the templates those of their `trainers/zsclip.py`. Two things differ. A class of ImageNet is
known by its folder in both splits, where the authors number the folders of each split by themselves. Where the split
file is missing, the authors draw a split of their own; here it is asked for.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fedgraft.core.errors import UserError, unknown
from fedgraft.data.examples import SPLIT_NAMES, Examples
from fedgraft.data.sources.decoding import SUFFIXES
from fedgraft.data.sources.labelled_files import FileOptions, ImageFile, examples_of_files, path_below, readable, told
from fedgraft.data.sources.source import Source

PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class Contents:
    """What a data set's files say: the images, the class name of each label in their order, and what is left out."""

    files: list[ImageFile]
    names: dict[str, str]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class CoopDataset:
    """One data set.

    Attributes:
        name: as in the authors' configurations.
        folder: its folder in the authors' layout.
        images: the folder of its images, below its own.
        template: the authors' hand-written prompt.
        read: reads it, given the data set and its folder.
        mark: a file or folder by which its folder is recognized under another name; None if it has none of its own.
    """

    name: str
    folder: str
    images: str
    template: str
    read: Callable[["CoopDataset", Path], Contents]
    mark: str | None = None

    def is_at(self, path: Path) -> bool:
        """Whether a folder holds what the data set is recognized by."""
        return self.mark is not None and (path / self.mark).exists()


class CoopOptions(FileOptions):
    """Which data set, and where."""

    path: str = Field(description="the data set's folder, or the folder above it", examples=["data/oxford_pets"])
    dataset: str = Field(
        "", description="its name, such as OxfordPets, where the folder does not tell", examples=["OxfordPets"]
    )


def open_examples(options: CoopOptions, seed: int) -> Examples:
    """The data set's images in the order of its split file, with the classes in the order of its labels.

    Raises:
        UserError: it cannot be told which data set it is, or a file is missing or malformed.
    """
    dataset, root = _find(Path(options.path).expanduser(), options.dataset)
    contents = dataset.read(dataset, root)
    names = [readable(name) for name in contents.names.values()]
    templates = (dataset.template,)
    return examples_of_files(
        contents.files, list(contents.names), names, root, options, contents.skipped, templates, repeated_names=True
    )


# --- which data set -------------------------------------------------------------------------------


def _find(path: Path, name: str) -> tuple[CoopDataset, Path]:
    """The data set and its folder, from the name given, the folder's name or what is in it."""
    if not path.is_dir():
        raise UserError(f"The folder {path} does not exist.")
    if name:
        dataset = _named(name)
        below = path / dataset.folder
        return dataset, below if below.is_dir() and not dataset.is_at(path) else path
    called = {path.name.lower(), path.resolve().name.lower()}
    for dataset in DATASETS:
        if dataset.folder in called:
            return dataset, path
    marked = [dataset for dataset in DATASETS if dataset.is_at(path)]
    if len(marked) == 1:
        return marked[0], path
    below_path = [dataset.folder for dataset in DATASETS if (path / dataset.folder).is_dir()]
    if below_path:
        raise UserError(f"The folder {path} holds several folders; give one of them: {', '.join(below_path)}.")
    raise UserError(
        f"The folder {path} does not tell which of CoOp's data sets it is; say so with --set dataset=NAME, one of "
        f"{', '.join(dataset.name for dataset in DATASETS)}."
    )


def _named(name: str) -> CoopDataset:
    for dataset in DATASETS:
        if name.lower() in (dataset.name.lower(), dataset.folder):
            return dataset
    raise unknown("data set of CoOp", name, [dataset.name for dataset in DATASETS])


# --- how each is read -----------------------------------------------------------------------------


def _split_file(dataset: CoopDataset, root: Path) -> Contents:
    """`split_zhou_*.json`: the image's path, label and class name under train, val and test."""
    path = _required(root / f"split_zhou_{dataset.name}.json", dataset)
    try:
        split = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [(name, *_row(row)) for name in SPLIT_NAMES for row in split[name]]
    except KeyError as error:
        raise UserError(f"The split file {path} has no images under {error}; it needs train, val and test.") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The split file {path} is malformed: {error}. Expected train, val and test, each a list of "
            "[path, label, class name]."
        ) from error
    files, names = [], dict[int, str]()
    for name, written, label, class_name in rows:
        if names.setdefault(label, class_name) != class_name:
            raise UserError(f"The split file {path} calls the label {label} both {names[label]!r} and {class_name!r}.")
        files.append(ImageFile(path_below(root / dataset.images, written, str(path)), "all", str(label), name))
    return Contents(files, {str(label): names[label] for label in sorted(names)})


def _row(row: Any) -> tuple[str, int, str]:
    written, label, class_name = row
    return str(written), int(label), str(class_name)


def _aircraft(dataset: CoopDataset, root: Path) -> Contents:
    """FGVC-Aircraft's own text files: the variants in the order of the labels, and for each split image and variant."""
    stripped = (line.strip() for line in _lines(root / "variants.txt", dataset))
    variants = {variant: variant for variant in stripped if variant}
    files = []
    for split in SPLIT_NAMES:
        path = root / f"images_variant_{split}.txt"
        for number, line in enumerate(_lines(path, dataset), start=1):
            image, _, variant = line.strip().partition(" ")
            if image and variant not in variants:
                raise UserError(f"Line {number} of {path} has the variant {variant!r}, which is not in variants.txt.")
            if image:
                written = path_below(root / dataset.images, f"{image}.jpg", f"Line {number} of {path}")
                files.append(ImageFile(written, "all", variant, split))
    return Contents(files, variants)


def _imagenet(dataset: CoopDataset, root: Path) -> Contents:
    """ImageNet: its validation images are for testing, as is common."""
    names = _class_names(dataset, root)
    images = root / dataset.images
    parts = [_class_folders(_required(images / folder, dataset), split) for folder, split in _IMAGENET_SPLITS]
    return _in_folders(images, parts, names)


def _tested_imagenet(dataset: CoopDataset, root: Path) -> Contents:
    """A variant of ImageNet in folders of the same names, for testing only."""
    images = _required(root / dataset.images, dataset)
    return _in_folders(images, [_class_folders(images, "test")], _class_names(dataset, root))


def _imagenet_v2(dataset: CoopDataset, root: Path) -> Contents:
    """ImageNet-V2: the folders 0, 1, ... are positions in classnames.txt."""
    images = _required(root / dataset.images, dataset)
    ordered = list(_class_names(dataset, root).values())
    numbered = {str(number): name for number, name in enumerate(ordered)}
    contents = _in_folders(images, [_class_folders(images, "test")], numbered)
    return Contents(
        contents.files, dict(sorted(contents.names.items(), key=lambda item: int(item[0]))), contents.skipped
    )


def _in_folders(images: Path, parts: Iterable[list[tuple[Path, str]]], names: dict[str, str]) -> Contents:
    """The images of class folders, each with its split; the classes have the order of the folders' names."""
    files, found, others = [], set(), []
    for folder, split in (each for part in parts for each in part):
        if folder.name not in names:
            raise UserError(f"The class folder {folder} is not in classnames.txt.")
        found.add(folder.name)
        for path in sorted(folder.iterdir()):
            if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
                files.append(ImageFile(path, "all", folder.name, split))
            else:
                others.append(path)
    skipped = (told(others, images, "file is no image", "files are no images"),) if others else ()
    return Contents(files, {name: names[name] for name in sorted(found)}, skipped)


def _class_folders(folder: Path, split: str) -> list[tuple[Path, str]]:
    return [(path, split) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _class_names(dataset: CoopDataset, root: Path) -> dict[str, str]:
    """`classnames.txt`: a folder and the name of its class, such as "n01440764 tench"."""
    given = (line.strip().partition(" ") for line in _lines(root / "classnames.txt", dataset))
    return {folder: name for folder, _, name in given if folder}


def _lines(path: Path, dataset: CoopDataset) -> list[str]:
    try:
        return _required(path, dataset).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {path} cannot be read: {error}.") from error


def _required(path: Path, dataset: CoopDataset) -> Path:
    if not path.exists():
        raise UserError(f"CoOp's data set {dataset.name} needs {path}, which does not exist; see {PAGE}.")
    return path


_IMAGENET_SPLITS = (("train", "train"), ("val", "test"))


def _split_by_file(name: str, folder: str, images: str, template: str) -> CoopDataset:
    return CoopDataset(name, folder, images, template, _split_file, f"split_zhou_{name}.json")


DATASETS = (
    _split_by_file("Caltech101", "caltech-101", "101_ObjectCategories", "a photo of a {}."),
    _split_by_file("OxfordPets", "oxford_pets", "images", "a photo of a {}, a type of pet."),
    _split_by_file("StanfordCars", "stanford_cars", "", "a photo of a {}."),
    _split_by_file("OxfordFlowers", "oxford_flowers", "jpg", "a photo of a {}, a type of flower."),
    _split_by_file("Food101", "food-101", "images", "a photo of {}, a type of food."),
    _split_by_file("SUN397", "sun397", "SUN397", "a photo of a {}."),
    _split_by_file("DescribableTextures", "dtd", "images", "{} texture."),
    _split_by_file("EuroSAT", "eurosat", "2750", "a centered satellite photo of {}."),
    _split_by_file("UCF101", "ucf101", "UCF-101-midframes", "a photo of a person doing {}."),
    CoopDataset(
        "FGVCAircraft", "fgvc_aircraft", "images", "a photo of a {}, a type of aircraft.", _aircraft, "variants.txt"
    ),
    CoopDataset("ImageNet", "imagenet", "images", "a photo of a {}.", _imagenet, "images/train"),
    CoopDataset(
        *("ImageNetV2", "imagenetv2", "imagenetv2-matched-frequency-format-val", "a photo of a {}.", _imagenet_v2),
        mark="imagenetv2-matched-frequency-format-val",
    ),
    CoopDataset("ImageNetSketch", "imagenet-sketch", "images", "a photo of a {}.", _tested_imagenet),
    CoopDataset("ImageNetA", "imagenet-adversarial", "imagenet-a", "a photo of a {}.", _tested_imagenet, "imagenet-a"),
    CoopDataset("ImageNetR", "imagenet-rendition", "imagenet-r", "a photo of a {}.", _tested_imagenet, "imagenet-r"),
)
"""All data sets; ImageNet and its variants share `classnames.txt`."""

SOURCE = Source(
    "coop",
    "CoOp's eleven data sets and four variants of ImageNet, with their splits, class order and templates",
    open_examples,
    options=CoopOptions,
    argument="path",
)
