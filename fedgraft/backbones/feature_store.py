"""The image-feature store: each image passes the image tower once, and every process maps the same file.

A store belongs to one backbone, one preprocessing and one representation: it holds final features, or the input of a
layer of the image tower if a method trains that layer and those above, or the features of all patches. It consists of
two files that only grow: `keys.bin` with a SHA-256 for each row and `vectors.f32` (or `.f16`) with the rows. A row
counts once both files hold it, so a fill that was killed continues where it stopped, and an image whose content has
changed has another key.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.kept_images import keep_images, kept_shape, parted
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.core.errors import UserError
from fedgraft.core.files import locked
from fedgraft.data.examples import KEY_BYTES, IntArray

_BATCH = 128
Progress = Callable[[int, int], None]


class FeatureStore:
    """Image features of one backbone by content key.

    Args:
        root: the cache folder; the store is a folder below it, named by fingerprint, preprocessing, precision
            and representation.
        form: what is stored of each image.
    """

    def __init__(self, root: Path, backbone: Backbone, form: Representation = FEATURES) -> None:
        kind = ("" if backbone.precision == "float32" else f"-{backbone.precision}") + form.label
        self.folder = root / "features" / f"{backbone.fingerprint[:24]}-{backbone.preprocessing[:12]}{kind}"
        self.shape = kept_shape(backbone, form)
        self._dtype = np.dtype(form.dtype)
        self._row_bytes = self._dtype.itemsize * math.prod(self.shape)
        self._rows_file = f"vectors.f{8 * self._dtype.itemsize}"
        self._backbone, self._form = backbone, form

    def rows(self, keys: NDArray[np.uint8]) -> IntArray:
        """The row of each key (n, 32), or -1 if the store does not hold it."""
        known = {key.tobytes(): row for row, key in enumerate(self._keys())}
        return np.asarray([known.get(key.tobytes(), -1) for key in keys], np.int64)

    def vectors(self) -> NDArray[np.floating]:
        """All rows, (rows, dim) or (rows, tokens, width or dim), memory-mapped and read-only."""
        count = self._complete_rows()
        if count == 0:
            return np.empty((0, *self.shape), self._dtype)
        return np.memmap(self.folder / self._rows_file, self._dtype, "r", shape=(count, *self.shape))

    def features(self, rows: IntArray) -> NDArray[np.float32]:
        """Final features (n, dim) of some rows."""
        vectors, done = self.vectors(), [np.empty((0, self._backbone.dim), np.float32)]
        for begin in range(0, len(rows), _BATCH):
            kept = torch.from_numpy(np.asarray(vectors[rows[begin : begin + _BATCH]])).to(self._backbone.device)
            with torch.no_grad():
                represented, final = parted(self._backbone, kept.float(), self._form)
                if final is None:
                    final = self._backbone.finish_images(represented, self._form)
                done.append(final.cpu().numpy())
        return np.concatenate(done)

    def fill(
        self, keys: NDArray[np.uint8], load: Callable[[int], Image.Image], progress: Progress | None = None
    ) -> int:
        """Compute the missing features and return the number of images encoded.

        Args:
            keys: (n, 32) content keys.
            load: returns the RGB image for a position in `keys`.
            progress: called with the number done and the number to do.
        """
        if (self.rows(keys) >= 0).all():
            return 0  # without waiting for a process that adds others
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            known = {key.tobytes() for key in self._keys()}
            positions = {key.tobytes(): position for position, key in enumerate(keys)}
            missing = sorted(position for key, position in positions.items() if key not in known)
            with (
                self._growing(self._rows_file, self._row_bytes) as vectors,
                self._growing("keys.bin", KEY_BYTES) as names,
            ):
                for begin in range(0, len(missing), _BATCH):
                    batch = missing[begin : begin + _BATCH]
                    pixels = self._backbone.preprocess([load(p) for p in batch])
                    rows = keep_images(self._backbone, pixels, self._form)
                    vectors.write(rows.to(self._form.torch_dtype).cpu().numpy().tobytes())
                    _flush(vectors)
                    names.write(keys[batch].tobytes())
                    _flush(names)
                    if progress:
                        progress(begin + len(batch), len(missing))
        return len(missing)

    def _keys(self) -> NDArray[np.uint8]:
        path = self.folder / "keys.bin"
        if not path.exists():
            return np.empty((0, KEY_BYTES), np.uint8)
        flat = np.fromfile(path, np.uint8, count=self._complete_rows() * KEY_BYTES)
        return flat.reshape(-1, KEY_BYTES)

    def _complete_rows(self) -> int:
        sizes = [
            (path.stat().st_size if (path := self.folder / name).exists() else 0) // width
            for name, width in (("keys.bin", KEY_BYTES), (self._rows_file, self._row_bytes))
        ]
        return min(sizes)

    @contextmanager
    def _growing(self, name: str, width: int) -> Iterator[IO[bytes]]:
        """A file opened at the end of its last complete row."""
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(self._complete_rows() * width)
            file.seek(0, os.SEEK_END)
            yield file


def view_keys(keys: NDArray[np.uint8], view: int, seed: int) -> NDArray[np.uint8]:
    """The keys of an augmented view; view 0 is the image itself."""
    if view == 0:
        return keys
    return np.stack([_derived_key(key, view, seed) for key in keys])


def view_image(image: Image.Image, key: NDArray[np.uint8], view: int, seed: int) -> Image.Image:
    """A random resized crop and flip drawn from the image's content, the view's number and the seed."""
    if view == 0:
        return image
    rng = np.random.default_rng(np.frombuffer(_derived_key(key, view, seed).tobytes(), np.uint32))
    scale = float(np.sqrt(rng.uniform(0.5, 1.0)))
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def require_rows(store: FeatureStore, keys: NDArray[np.uint8]) -> IntArray:
    """The rows of keys; raises UserError if the store lacks some."""
    rows = store.rows(keys)
    if (rows < 0).any():
        lacking = int((rows < 0).sum())
        raise UserError(f"The feature store {store.folder} lacks {lacking} of {len(rows)} images; fill it first.")
    return rows


def _derived_key(key: NDArray[np.uint8], view: int, seed: int) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(key.tobytes() + f"/view/{view}/{seed}".encode()).digest(), np.uint8)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
