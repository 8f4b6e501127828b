"""A folder of images in ImageFolder's layout: class/image or domain/class/image, recognized by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.core.refusals import Refusal
from fedgraft.data.examples import DEFAULT_TEMPLATES, KEY_BYTES, Examples, as_rgb, content_key
from fedgraft.data.sources.source import Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class ImageFile:
    """An image and the names of its folders."""

    path: Path
    domain: str
    label: str


class FolderOptions(Options):
    """Which folder to read, and how."""

    path: str = Field(description="path of the folder", examples=["photos"])
    domains: bool = Field(False, description="whether to read it as domain/class/image regardless", examples=[True])


def open_examples(options: FolderOptions, seed: int) -> Examples:
    """Read the layout and key each image by its file's bytes; an image is decoded when it is loaded.

    Raises:
        UserError: there is no such folder or no image, a class is empty, or two folders have one class name.
    """
    root = Path(options.path).expanduser()
    files = list_images(root, options.domains)
    raw_names = sorted({file.label for file in files}, key=lambda name: (readable(name), name))
    class_names = tuple(readable(name) for name in raw_names)
    if len(set(class_names)) < len(class_names):
        raise UserError(f"Two folders of {root} have the same class name; the folders are {', '.join(raw_names)}.")
    domain_names = sorted({file.domain for file in files})
    keys = np.empty((len(files), KEY_BYTES), np.uint8)
    for index, file in enumerate(files):
        keys[index] = content_key(file.path.read_bytes())
    return Examples(
        class_names=class_names,
        labels=np.asarray([raw_names.index(file.label) for file in files]),
        domain_names=tuple(domain_names),
        domains=np.asarray([domain_names.index(file.domain) for file in files]),
        keys=keys,
        load=lambda index: decode(files[index].path),
        templates=DEFAULT_TEMPLATES,
    )


def open_site_images(root: Path, class_names: Sequence[str], renamed: Mapping[str, str]) -> Examples:
    """A site's own folder of images, labelled with the classes of its federation.

    Args:
        class_names: of the federation.
        renamed: maps a folder's name to the federation's class name, where they differ.

    Raises:
        UserError: there is no such folder, or no images.
        Refusal: a class is unknown to the federation.
    """
    files = list_images(root)
    known = {name: position for position, name in enumerate(class_names)}
    named = {file.label: renamed.get(file.label, readable(file.label)) for file in files}
    if foreign := sorted(label for label, name in named.items() if name not in known):
        raise Refusal(
            "classes",
            detail=f"The folder {root} holds the class {foreign[0]!r}, which the federation does not know; map it to "
            f"one of its classes in the site's labels, or remove it. The federation knows: {', '.join(class_names)}.",
        )
    return Examples(
        class_names=tuple(class_names),
        labels=np.asarray([known[named[file.label]] for file in files]),
        domain_names=("all",),
        domains=np.zeros(len(files), np.int64),
        keys=np.stack([content_key(file.path.read_bytes()) for file in files]),
        load=lambda index: decode(files[index].path),
        partial=True,
    )


def readable(folder_name: str) -> str:
    """A folder's name as a class name in a prompt: "laptop_computer" becomes "laptop computer"."""
    return folder_name.replace("_", " ").strip()


def list_images(root: Path, force_domains: bool = False) -> list[ImageFile]:
    """All images below a folder; raises UserError if it does not exist or contains no images."""
    if not root.is_dir():
        raise UserError(f"The folder {root} does not exist.")
    tops = _subfolders(root)
    if not tops:
        raise UserError(f"The folder {root} has no class folders; expected class/image or domain/class/image.")
    deep = force_domains or (not any(_images(top) for top in tops) and any(_subfolders(top) for top in tops))
    if not deep:
        return [ImageFile(path, "all", top.name) for top in tops for path in _class_images(top)]
    files = [
        ImageFile(path, domain.name, folder.name)
        for domain in tops
        for folder in _subfolders(domain)
        for path in _class_images(folder)
    ]
    if not files:
        raise UserError(f"The folder {root}, read with domains, has no images below domain/class/.")
    return files


def _subfolders(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=str)


def _images(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES), key=str)


def _class_images(folder: Path) -> list[Path]:
    images = _images(folder)
    if not images:
        raise UserError(f"The class folder {folder} contains no images ({', '.join(SUFFIXES)}).")
    return images


def decode(path: Path) -> Image.Image:
    """An image as RGB, upright; raises UserError if the file is not a complete image."""
    try:
        with Image.open(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be decoded: {error}. Repair or remove it.") from error


SOURCE = Source(
    "folder",
    "your images as class/image or domain/class/image",
    open_examples,
    options=FolderOptions,
    argument="path",
    folder="path",
)
