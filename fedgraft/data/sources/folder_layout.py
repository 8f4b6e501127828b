"""Which folder of a tree is a domain, a class or a split, recognized by depth and by the names train, val and test.

An image lies in class/image or domain/class/image. A level of folders that are all named as splits are, such as
`train`, `validation` and `test` or `seg_train` and `seg_test`, may stand above, between or below these.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedgraft.core.errors import UserError
from fedgraft.data.sources.decoding import SUFFIXES
from fedgraft.data.sources.labelled_files import ImageFile, told

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""What the splits are called in the names of folders, files and tables, in lower case."""
_SPLIT = re.compile(rf"(?:(.+)[ _-])?({'|'.join(SPLITS)})", re.IGNORECASE)
_DEEPEST = 5
Role = Literal["split", "name"]


@dataclass(frozen=True)
class Listing:
    """The images of a folder, and a line for what is left out."""

    files: list[ImageFile]
    skipped: list[str]


@dataclass
class _Folder:
    path: Path
    folders: list["_Folder"] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def walk(self) -> Iterator["_Folder"]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def list_images(root: Path, force_domains: bool = False) -> list[ImageFile]:
    """All images below a folder; errors as in `list_folder`."""
    return list_folder(root, force_domains).files


def list_folder(root: Path, force_domains: bool = False, splits: bool = True) -> Listing:
    """All images below a folder, and what is left out.

    Args:
        force_domains: whether to read domain/class/image even where the depth is misleading.
        splits: whether folders may be splits.

    Raises:
        UserError: the folder does not exist or contains no images, or what its folders mean cannot be told.
    """
    if not root.is_dir():
        raise UserError(f"The folder {root} does not exist.")
    tree = _scan(root, _DEEPEST, ())
    if not tree.folders:
        raise UserError(f"The folder {root} has no class folders; expected class/image or domain/class/image.")
    roles = _roles(tree, force_domains, splits)
    _require_names(tree, roles, force_domains)
    files = list(_files(tree, roles, "split" in roles))
    if not files:
        raise UserError(f"The folder {root} has no images ({', '.join(SUFFIXES)}).")
    _require_classes(root, roles, files)
    return Listing(files, _skipped(tree, files))


def split_named(name: str) -> tuple[str, str] | None:
    """What stands before the split in a name, and the split: "seg_train" gives ("seg", "train"); None without one."""
    found = _SPLIT.fullmatch(name)
    return (found[1] or "", SPLITS[found[2].lower()]) if found else None


def _scan(path: Path, depth: int, above: tuple[tuple[int, int], ...]) -> _Folder:
    """The tree below a folder; hidden folders and links back to a folder above are not entered."""
    found = _Folder(path)
    try:
        above = (*above, _identity(path.stat()))
        with os.scandir(path) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"The folder {path} cannot be read: {error.strerror}.") from error
    for entry in listed:
        inside = path / entry.name
        kind = _kind(entry)
        if kind == "folder":
            hidden = entry.name.startswith(".") or entry.name == "__MACOSX"
            if depth and not hidden and _identity(entry.stat()) not in above:
                found.folders.append(_scan(inside, depth - 1, above))
        else:
            (found.images if kind == "image" else found.others).append(inside)
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "image", "other"]:
    """By name; a link without its target counts as an image, so that it is reported when it is read."""
    try:
        if entry.is_dir():
            return "folder"
        readable = entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # links in a circle
        readable = True
    named = not entry.name.startswith(".") and entry.name.lower().endswith(SUFFIXES)
    return "image" if named and readable else "other"


def _roles(tree: _Folder, force_domains: bool, splits: bool) -> list[Role]:
    """What the folders of each level are, from the top down to where the images are."""
    level, roles = tree.folders, list[Role]()
    while level:
        names = {folder.path.name for folder in level if folder.folders or folder.images}
        is_split = splits and "split" not in roles and _are_splits(names)
        if roles.count("name") == 2 and not is_split and force_domains:
            return roles
        roles.append("split" if is_split else "name")
        if any(folder.images for folder in level) and not (force_domains and roles.count("name") < 2):
            return roles
        level = [below for folder in level for below in folder.folders]
    return roles


def _are_splits(names: set[str]) -> bool:
    """Whether folders of these names are splits: exactly train, val or test, or several such behind one same word."""
    found = [split_named(name) for name in names]
    known = [each for each in found if each is not None]
    stems, kinds = {stem for stem, _ in known}, {kind for _, kind in known}
    return len(known) == len(found) and len(stems) == 1 and (stems == {""} or len(kinds) > 1)


def _require_names(tree: _Folder, roles: list[Role], force_domains: bool) -> None:
    """Raise UserError unless there is a level of classes, and at most one of domains above it."""
    named = roles.count("name")
    if not named:
        raise UserError(_question(tree.path, [folder.path.name for folder in tree.folders if folder.images]))
    if force_domains and named < 2:
        raise UserError(f"The folder {tree.path}, read with domains, has no images below domain/class/.")
    if named > 2:
        raise UserError(
            f"The images of the folder {tree.path} are below {named} levels of folders; expected class/image or "
            "domain/class/image, with at most one level of train, val and test beside these."
        )


def _question(root: Path, names: Sequence[str]) -> str:
    return (
        f"The folder {root} holds images in {' and '.join(names[:3])}, which look like splits and not like classes, so "
        "that no image has a label. Where the labels are in a file, write them as csv:FILE, or give one of CoOp's data "
        "sets as coop:PATH. If these are the classes, say so with --set splits=false."
    )


def _require_classes(root: Path, roles: list[Role], files: list[ImageFile]) -> None:
    """Raise UserError where the folders below the splits are called as splits are and so can hardly be classes."""
    labels = sorted({file.label for file in files})
    if "split" in roles and all(split_named(label) for label in labels):
        raise UserError(_question(root, labels))


def _files(
    folder: _Folder, roles: Sequence[Role], split_level: bool, split: str = "", names: tuple[str, ...] = ()
) -> Iterator[ImageFile]:
    """The images below a folder; raises UserError for a class folder without images."""
    if not roles:
        domain, label = ("all", *names)[-2:]
        if not folder.images and not split_level:
            raise UserError(f"The class folder {folder.path} contains no images ({', '.join(SUFFIXES)}).")
        for path in folder.images:
            yield ImageFile(path, domain, label, split)
        return
    for below in folder.folders:
        if roles[0] == "name":
            yield from _files(below, roles[1:], split_level, split, (*names, below.path.name))
        elif (known := split_named(below.path.name)) is not None:
            yield from _files(below, roles[1:], split_level, known[1], names)


def _skipped(tree: _Folder, files: Sequence[ImageFile]) -> list[str]:
    """A line for each kind of file that is left out."""
    read = {str(file.path) for file in files}
    kinds: dict[tuple[str, str], list[Path]] = {}
    for folder in tree.walk():
        for path in folder.others:
            hidden = path.name.startswith(".")
            kind = ("hidden file", "hidden files") if hidden else ("file is no image", "files are no images")
            kinds.setdefault(kind, []).append(path)
        for path in folder.images:
            if str(path) not in read:
                strays = ("image is outside the class folders", "images are outside the class folders")
                kinds.setdefault(strays, []).append(path)
    return [told(paths, tree.path, *kind) for kind, paths in sorted(kinds.items())]
