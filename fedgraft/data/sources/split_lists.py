"""Lists of images with labels, `DOMAIN_train.txt` and `DOMAIN_test.txt`, as DomainNet's (Peng et al., ICCV 2019).

A line is "clipart/mug/clipart_001.jpg 12": the path below the data set's folder and the label. The class is named by
the image's folder, the classes have the order of the labels, and the domain is what stands before the split in the name
of the list.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedgraft.core.errors import UserError
from fedgraft.data.sources.decoding import SUFFIXES
from fedgraft.data.sources.folder_layout import split_named
from fedgraft.data.sources.labelled_files import ImageFile, path_below


def find_lists(root: Path, subfolder: str) -> list[Path]:
    """The lists in the subfolder, or else in the folder itself, sorted; none if the files there are no such lists."""
    for folder in (root / subfolder, root):
        if folder.is_dir() and (lists := [path for path in sorted(folder.glob("*.[tT][xX][tT]")) if _is_list(path)]):
            return lists
    return []


def read_lists(root: Path, lists: Sequence[Path]) -> tuple[list[ImageFile], dict[str, str]]:
    """The images of all lists, and the class folder of each label in the order of the labels.

    Raises:
        UserError: a line is malformed, or two classes have one label.
    """
    files: list[ImageFile] = []
    names: dict[int, str] = {}
    for path in lists:
        named = split_named(path.stem)
        assert named is not None
        domain, split = named[0] or "all", named[1]
        for place, written, label in _lines(path):
            name = PurePosixPath(written).parent.name
            if names.setdefault(label, name) != name:
                raise UserError(f"{place} gives the label {label} to {name!r}, but elsewhere it is {names[label]!r}.")
            files.append(ImageFile(path_below(root, written, place), domain, str(label), split))
    return files, {str(label): names[label] for label in sorted(names)}


def _is_list(path: Path) -> bool:
    """Whether a file is called as a list is and begins with an image and a label."""
    if split_named(path.stem) is None:
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
