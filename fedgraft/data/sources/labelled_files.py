"""Image files with a label each, from wherever the labels are, as a table of examples."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DEFAULT_TEMPLATES, SPLIT_NAMES, Examples, IntArray
from fedgraft.data.sources.decoding import decode
from fedgraft.data.sources.file_keys import keys_of

_SHOWN = 3


@dataclass(frozen=True)
class ImageFile:
    """An image, with the names that its source gives to domain, class, split and writer."""

    path: Path
    domain: str
    label: str
    split: str = ""
    site: str = ""


class FileOptions(Options):
    """What is done with an image that cannot be read."""

    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="whether an image that cannot be read ends the run or is left out", examples=["skip"]
    )


def examples_of_files(
    files: Sequence[ImageFile],
    labels: Sequence[str],
    class_names: Sequence[str],
    root: Path,
    options: FileOptions,
    skipped: Sequence[str] = (),
    templates: tuple[str, ...] = DEFAULT_TEMPLATES,
    repeated_names: bool = False,
) -> Examples:
    """Key each file by its bytes; an image is decoded when it is loaded, or at once if damaged ones are left out.

    Args:
        labels: the labels of the files in the order of the classes.
        class_names: of these labels.
        root: the folder or file that names the data set.

    Raises:
        UserError: an image cannot be read and is not to be left out, it has two labels, or a class has none.
    """
    files, repeated = _without_repeats(files)
    leave_out = options.on_bad_image == "skip"
    found = keys_of([file.path for file in files], root, decoding=leave_out)
    faults = list(found.faults.values())
    if faults and not leave_out:
        raise UserError(
            f"{len(faults)} of the {len(files)} images of {root} cannot be read. {faults[0]} "
            "Repair the data, or leave out such images with --set on_bad_image=skip."
        )
    sound = [position for position in range(len(files)) if position not in found.faults]
    kept = [files[position] for position in sound]
    if not kept:
        raise UserError(f"None of the {len(files)} images of {root} can be read. {faults[0]}")
    sites = sorted_names({file.site for file in kept} - {""})
    domains = sorted({file.domain for file in kept})
    return Examples(
        class_names=tuple(class_names),
        labels=_positions((file.label for file in kept), labels),
        domain_names=tuple(domains),
        domains=_positions((file.domain for file in kept), domains),
        keys=found.keys[sound],
        load=lambda index: _loaded(kept[index].path),
        templates=templates,
        splits=_splits(kept),
        site_names=tuple(sites),
        sites=_positions((file.site for file in kept), sites) if sites else None,
        skipped=(*skipped, *repeated, *faults),
        repeated_names=repeated_names,
    )


def readable(name: str) -> str:
    """The name of a folder or label as a class name in a prompt: "laptop_computer" becomes "laptop computer"."""
    return name.replace("_", " ").strip()


def sorted_names(names: Iterable[str]) -> list[str]:
    """Names sorted as numbers if all are whole numbers, else by what is read."""
    given = list(names)
    if all(name.isascii() and name.isdigit() for name in given):
        return sorted(given, key=lambda name: (int(name), name))
    return sorted(given, key=lambda name: (readable(name), name))


def path_below(root: Path, written: str, where: str) -> Path:
    """The path of an image that a file names, relative to `root`.

    Args:
        where: the file and line, for the message.

    Raises:
        UserError: it leads out of the folder.
    """
    base = os.path.abspath(root)  # noqa: PTH100
    path = os.path.normpath(os.path.join(base, written))  # noqa: PTH118
    if not path.startswith(os.path.join(base, "")):  # noqa: PTH118
        raise UserError(f"{where} names the image {written!r}, which is outside the folder {root}.")
    return Path(path)


def told(paths: Sequence[Path], root: Path, one: str, many: str) -> str:
    """A line on files that are left out, such as "3 files are no images: a.txt, b/c.txt, d.txt"."""
    shown = ", ".join(str(path.relative_to(root)) for path in paths[:_SHOWN])
    return f"{len(paths)} {one if len(paths) == 1 else many}: {shown}{', ...' if len(paths) > _SHOWN else ''}"


def _without_repeats(files: Sequence[ImageFile]) -> tuple[Sequence[ImageFile], list[str]]:
    """The files without those that are given again, and a line on these; raises UserError for a second label."""
    labels: dict[str, str] = {}
    for file in files:
        if labels.setdefault(str(file.path), file.label) != file.label:
            raise UserError(f"The image {file.path} has two labels, {labels[str(file.path)]!r} and {file.label!r}.")
    if len(labels) == len(files):
        return files, []
    once = list(dict.fromkeys(files))
    again = len(files) - len(once)
    return once, [f"{again} {'image is' if again == 1 else 'images are'} listed more than once"] if again else []


def _loaded(path: Path) -> Image.Image:
    try:
        return decode(path)
    except UserError as error:
        raise UserError(f"{error} To leave out such images: --set on_bad_image=skip.") from error


def _positions(given: Iterable[str], names: Sequence[str]) -> IntArray:
    known = {name: position for position, name in enumerate(names)}
    return np.asarray([known[name] for name in given], np.int64)


def _splits(files: Sequence[ImageFile]) -> NDArray[np.int8] | None:
    """The split of each file; None if all are for training, which leaves testing to `test_fraction`."""
    known = {name: position for position, name in enumerate(SPLIT_NAMES)}
    if {file.split for file in files} <= {"", "train"}:
        return None
    return np.asarray([known[file.split] for file in files], np.int8)
