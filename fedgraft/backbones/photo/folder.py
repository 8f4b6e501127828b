"""The folder of `photo` in the cache, made once from the packages of its encoders and the map in this package."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from fedgraft.backbones.photo.model import PhotoConfig
from fedgraft.backbones.photo.packages import IMAGES, SENTENCES, SentenceEncoder, image_weights, sentence_encoder
from fedgraft.backbones.photo.text_map import SHARPNESS, packaged_map, read_map
from fedgraft.core.files import cache_root, write_bytes

_FORMAT = 1
"""Raise it when the same packages and map are to become another folder."""
_LOGIT_SCALE = 20.0
_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def photo_folder() -> Path:
    """The folder, made now unless it exists; of two processes one makes it and the other waits.

    Raises:
        UserError: a package is not installed, or its file is not the published one.
    """
    root = cache_root() / "backbones"
    parts = (str(_FORMAT), IMAGES.digest, SENTENCES.digest, hashlib.sha256(packaged_map()).hexdigest())
    folder = root / f"photo-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    (weights, _), encoder = image_weights(), sentence_encoder()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "photo.lock"):
        if not folder.is_dir():
            for left in root.glob(".photo-*.tmp"):
                shutil.rmtree(left)
            scratch = root / f".{folder.name}.{os.getpid()}.tmp"
            _write(scratch, weights, encoder)
            scratch.replace(folder)
    return folder


def _write(folder: Path, image: dict[str, Tensor], sentences: SentenceEncoder) -> None:
    joined = read_map()
    config = PhotoConfig(
        sentences.config,
        dim=len(joined["directions"]),
        anchors=len(joined["anchors"]),
        sharpness=SHARPNESS,
        logit_scale=_LOGIT_SCALE,
    )
    weights = {f"image_model.{name}": tensor for name, tensor in image.items()}
    weights |= {f"text_model.{name}": tensor for name, tensor in sentences.weights.items()}
    weights |= {
        "visual_projection.weight": joined["directions"],
        "text_map.anchors": joined["anchors"],
        "text_map.coefficients": joined["coefficients"],
    }
    contents = {
        **sentences.tokenizer,
        "config.json": json.dumps(config.to_json(), indent=2).encode(),
        "preprocessor_config.json": json.dumps(_PREPROCESSOR, indent=2).encode(),
        "model.safetensors": save(weights),
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
