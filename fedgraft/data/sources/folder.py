"""Local images in ImageFolder's layout, with splits where folders or lists name them, and a deployed site's images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from fedgraft.core.errors import UserError
from fedgraft.core.refusals import Refusal
from fedgraft.data.examples import SPLIT_NAMES, Examples
from fedgraft.data.sources.decoding import decode
from fedgraft.data.sources.file_keys import keys_of
from fedgraft.data.sources.folder_layout import list_folder
from fedgraft.data.sources.labelled_files import FileOptions, examples_of_files, readable
from fedgraft.data.sources.source import Source
from fedgraft.data.sources.split_lists import find_lists, read_lists


class FolderOptions(FileOptions):
    """Which folder to read, and how."""

    path: str = Field(description="path of the folder", examples=["photos"])
    domains: bool = Field(False, description="whether to read it as domain/class/image regardless", examples=[True])
    splits: bool = Field(
        True, description="whether folders named train, val and test, and lists of them, are splits", examples=[False]
    )
    lists: str = Field(
        "splits",
        description="the subfolder with the lists DOMAIN_train.txt and DOMAIN_test.txt",
        examples=["splits_mini"],
    )


def open_examples(options: FolderOptions, seed: int) -> Examples:
    """Read the layout, or the lists of images beside it, and key each image by its file's bytes.

    Raises:
        UserError: there is no such folder or no image, a class is empty, two folders have one class name, or what the
            folders mean cannot be told.
    """
    root = Path(options.path).expanduser()
    if options.splits and not options.domains and (lists := find_lists(root, options.lists)):
        listed, folders, skipped = read_lists(root, lists)
        names = [readable(folder) for folder in folders.values()]
        return examples_of_files(listed, list(folders), names, root, options, skipped)
    listing = list_folder(root, options.domains, options.splits)
    labels = sorted({file.label for file in listing.files}, key=lambda name: (readable(name), name))
    class_names = [readable(label) for label in labels]
    if len(set(class_names)) < len(class_names):
        raise UserError(f"Two folders of {root} have the same class name; the folders are {', '.join(labels)}.")
    if len(labels) == 1:
        raise UserError(
            f"The folder {root} has only one class, {class_names[0]!r}; a classifier needs at least two. Where the "
            "labels are in a file, write them as csv:FILE, or give one of CoOp's data sets as coop:PATH."
        )
    return examples_of_files(listing.files, labels, class_names, root, options, [*listing.skipped, *_hint(root)])


def open_site_images(
    root: Path,
    class_names: Sequence[str],
    renamed: Mapping[str, str],
    cache: Path | None = None,
    leave_out: bool = False,
) -> Examples:
    """A site's own folder of images, labelled with the classes of its federation.

    Args:
        class_names: of the federation.
        renamed: maps a folder's name to the federation's class name, where they differ.
        cache: the site's folder for what it keeps of its images, so that a second start reads none.
        leave_out: whether an image that cannot be read is left out; each is decoded once to find out.

    Raises:
        UserError: there is no such folder, or no images, or one that cannot be read is not to be left out.
        Refusal: a class is unknown to the federation.
    """
    listing = list_folder(root)
    files = listing.files
    known = {name: position for position, name in enumerate(class_names)}
    named = {file.label: renamed.get(file.label, readable(file.label)) for file in files}
    if foreign := sorted(label for label, name in named.items() if name not in known):
        raise Refusal(
            "classes",
            detail=f"The folder {root} holds the class {foreign[0]!r}, which the federation does not know; map it to "
            f"one of its classes in the site's labels, or remove it. The federation knows: {', '.join(class_names)}.",
        )
    found = keys_of([file.location for file in files], root, decoding=leave_out, cache=cache)
    faults = list(found.faults.values())
    if faults and (not leave_out or len(faults) == len(files)):
        raise UserError(
            f"{len(faults)} of the {len(files)} images of {root} cannot be read. {faults[0]} Repair the data, or leave "
            'out such images with on_bad_image = "skip" in site.toml.'
        )
    sound = [position for position in range(len(files)) if position not in found.faults]
    files = [files[position] for position in sound]
    has_splits = any(file.split not in ("", "train") for file in files)
    return Examples(
        class_names=tuple(class_names),
        labels=np.asarray([known[named[file.label]] for file in files]),
        domain_names=("all",),
        domains=np.zeros(len(files), np.int64),
        keys=found.keys[sound],
        load=lambda index: decode(files[index].path),
        partial=True,
        splits=np.asarray([SPLIT_NAMES.index(file.split) for file in files], np.int8) if has_splits else None,
        skipped=(*listing.skipped, *faults),
    )


def _hint(root: Path) -> list[str]:
    """A line where a split file that this source does not read lies beside the images."""
    found = [*root.glob("split_zhou_*.json"), *root.parent.glob("split_zhou_*.json")]
    return [f"1 split file is not read here, but as coop:{file.parent}: {file.name}" for file in found[:1]]


SOURCE = Source(
    "folder",
    "your images as class/image or domain/class/image, with or without train, val and test",
    open_examples,
    options=FolderOptions,
    argument="path",
    folder="path",
    local="path",
)
