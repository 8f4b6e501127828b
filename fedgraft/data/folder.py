"""A folder of images in ImageFolder's layout: class/image or domain/class/image, found by depth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fedgraft.data.examples import DEFAULT_TEMPLATES, KEY_BYTES, Examples, as_rgb, content_key
from fedgraft.data.sources import SourceRequest
from fedgraft.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class _File:
    path: Path
    domain: str
    label: str


def open_examples(request: SourceRequest) -> Examples:
    """Read the layout and key each image by its file's bytes; an image is decoded when it is loaded.

    Raises:
        UserError: no such folder, no images, an empty class, or two folders for one class name.
    """
    root = Path(request.argument).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    files = _listed(root, request.force_domains)
    raw_names = sorted({file.label for file in files}, key=lambda name: (readable(name), name))
    class_names = tuple(readable(name) for name in raw_names)
    if len(set(class_names)) < len(class_names):
        raise UserError(f"Two folders of {root} stand for one class name; the folders are {', '.join(raw_names)}.")
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
        load=lambda index: _decoded(files[index].path),
        templates=DEFAULT_TEMPLATES,
    )


def readable(folder_name: str) -> str:
    """A folder's name as a class name in a prompt: "laptop_computer" becomes "laptop computer"."""
    return folder_name.replace("_", " ").strip()


def _listed(root: Path, force_domains: bool) -> list[_File]:
    tops = _subfolders(root)
    if not tops:
        raise UserError(f"The folder {root} holds no class folders; expected class/image or domain/class/image.")
    deep = force_domains or (not any(_images(top) for top in tops) and any(_subfolders(top) for top in tops))
    if not deep:
        return [_File(path, "all", top.name) for top in tops for path in _class_images(top)]
    files = [
        _File(path, domain.name, folder.name)
        for domain in tops
        for folder in _subfolders(domain)
        for path in _class_images(folder)
    ]
    if not files:
        raise UserError(f"The folder {root} holds no images below domain/class/; it was read with domains.")
    return files


def _subfolders(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=str)


def _images(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES), key=str)


def _class_images(folder: Path) -> list[Path]:
    images = _images(folder)
    if not images:
        raise UserError(f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}).")
    return images


def _decoded(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be decoded: {error}. Repair or remove it.") from error
