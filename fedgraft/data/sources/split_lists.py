"""Lists of images with labels, `DOMAIN_train.txt` and `DOMAIN_test.txt`, as DomainNet's (Peng et al., ICCV 2019).

A line is "clipart/mug/clipart_001.jpg 12": the path below the data set's folder and the label. The class is named by
the image's folder, the classes have the order of the labels, and the domain is what stands before the split in the name
of the list.

PACS' lists (Li et al., ICCV 2017) are `DOMAIN_train_kfold.txt`, `DOMAIN_crossval_kfold.txt` for validation, and
`DOMAIN_test_kfold.txt` with all images of the domain; labels begin with 1, and the images may lie below `images/`, as
Dassl has them. Its lists of tests add nothing, and one image that Dassl calls faulty is left out, as there.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedgraft.core.errors import UserError
from fedgraft.data.sources.decoding import SUFFIXES
from fedgraft.data.sources.folder_layout import split_named
from fedgraft.data.sources.labelled_files import ImageFile, location_below

_WHOLE_DOMAIN = "_test_kfold"
_FAULTY = "sketch/dog/n02103406_4068-1.png"


def find_lists(root: Path, subfolder: str) -> list[Path]:
    """The lists in the subfolder, or else in the folder itself, sorted; none if the files there are no such lists."""
    for folder in (root / subfolder, root):
        if folder.is_dir() and (lists := [path for path in sorted(folder.glob("*.[tT][xX][tT]")) if _is_list(path)]):
            return lists
    return []


def read_lists(root: Path, lists: Sequence[Path]) -> tuple[list[ImageFile], dict[str, str], list[str]]:
    """The images of all lists, the class folder of each label in the order of the labels, and what is left out.

    Raises:
        UserError: a line is malformed, or two classes have one label.
    """
    files: list[ImageFile] = []
    names: dict[int, str] = {}
    skipped: list[str] = []
    whole = [path for path in lists if path.stem.lower().endswith(_WHOLE_DOMAIN)]
    for path in [path for path in lists if path not in whole] + whole:
        named = _split_of(path)
        assert named is not None
        domain, split = named[0] or "all", named[1]
        known = {file.location for file in files} if path in whole else set()
        for place, written, label in _lines(path):
            name = PurePosixPath(written).parent.name
            if names.setdefault(label, name) != name:
                raise UserError(f"{place} gives the label {label} to {name!r}, but elsewhere it is {names[label]!r}.")
            location = location_below(_images_of(root, written), written, place)
            if written == _FAULTY and path not in whole:
                skipped.append(f"1 image of PACS is faulty: {written}")
            elif location not in known and written != _FAULTY:
                files.append(ImageFile(location, domain, str(label), split))
    return files, {str(label): names[label] for label in sorted(names)}, skipped


def _split_of(path: Path) -> tuple[str, str] | None:
    """The domain and the split in the name of a list; None if it has none."""
    stem = re.sub(r"_kfold$", "", path.stem, flags=re.IGNORECASE)
    return split_named(re.sub(r"_crossval$", "_val", stem, flags=re.IGNORECASE))


def _images_of(root: Path, written: str) -> Path:
    """The folder that an image's path begins in: the data set's own, or `images` in it."""
    images = root / "images"
    return images if not (root / PurePosixPath(written).parts[0]).exists() and images.is_dir() else root


def _is_list(path: Path) -> bool:
    """Whether a file is called as a list is and begins with an image and a label."""
    if _split_of(path) is None:
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        written, _, label = file.readline().strip().rpartition(" ")
    return written.lower().endswith(SUFFIXES) and label.isdigit()


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Where each line stands, its image and its label."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        written, _, label = line.strip().rpartition(" ")
        if not written or not label.isdigit():
            raise UserError(f"{place} is {line.strip()!r}; expected the path of an image, a space and a label.")
        yield place, written, int(label)
