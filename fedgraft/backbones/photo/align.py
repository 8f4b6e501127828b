"""Make the map that joins the two encoders, from words alone: `python -m fedgraft.backbones.photo.align`.

Of ImageNet it takes the names that CLIP's authors gave its classes and WordNet's definitions of them, and of the image
encoder its classifier's rows; no image is read. `--held-out` measures how well names that the map was not made of find
their own rows.
"""

import argparse
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.photo.packages import image_weights, sentence_encoder
from fedgraft.backbones.photo.sentence_model import empty_sentence_model, sentence_tokenizer
from fedgraft.backbones.photo.text_map import SHARPNESS, kernel
from fedgraft.core.files import write_bytes

TEMPLATE = "a photo of a {}."
DIM = 256
DEFINITION = 0.75
"""What the sentence with a class's definition counts beside the sentence with its name."""
RIDGE = 0.1
_HELD_OUT, _SPLITS = 200, 10


@dataclass(frozen=True)
class Sentences:
    """Unit vectors of MiniLM about ImageNet's classes in the order of the classifier.

    Attributes:
        names: (1000, 384), of the names in a template.
        definitions: (1000, 384).
    """

    names: Tensor
    definitions: Tensor

    @property
    def anchors(self) -> Tensor:
        """What the map is made of: unit vectors (1000, 384)."""
        return F.normalize(self.names + DEFINITION * self.definitions, dim=-1)


def classes() -> list[tuple[str, str, str]]:
    """WordNet's number, a name and WordNet's definition of each class of ImageNet-1k."""
    text = (files("fedgraft.backbones.photo") / "imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return [(number, name, definition) for number, name, definition in rows]


def read_sentences() -> Sentences:
    """Encode names and definitions with the packaged MiniLM; raises UserError if it is not installed."""
    encoder = sentence_encoder()
    model = empty_sentence_model(encoder.config)
    model.load_state_dict(encoder.weights)
    tower = BertTextTower(model, sentence_tokenizer(encoder.tokenizer), "mean")
    names = tower.encode_texts([TEMPLATE.format(name) for _, name, _ in classes()])
    definitions = tower.encode_texts([definition for _, _, definition in classes()])
    return Sentences(names.double(), definitions.double())


def principal_directions(head: Tensor, dim: int = DIM) -> Tensor:
    """The first directions (dim, 1280), orthonormal, of the classifier's centred rows (1000, 1280).

    A direction's largest component is positive, since its sign is otherwise any.
    """
    directions: Tensor = torch.linalg.svd(head - head.mean(0), full_matrices=False).Vh[:dim]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    signed: Tensor = directions * largest.sign()
    return signed


def ridge(anchors: Tensor, rows: Tensor) -> Tensor:
    """Coefficients (J, dim) of kernel ridge regression from anchors (J, 384) to rows (J, dim)."""
    gram = kernel(anchors, anchors, SHARPNESS)
    coefficients: Tensor = torch.linalg.solve(gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype), rows)
    return coefficients


def own_row_first(sentences: Sentences, rows: Tensor, seed: int) -> tuple[float, float]:
    """Leave 200 classes out of the map and look them up among themselves.

    Returns:
        Percent of names whose nearest row is their own, and of rows whose nearest name is their own.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    left_out, known = order[:_HELD_OUT], order[_HELD_OUT:]
    anchors = sentences.anchors[known]
    mapped = kernel(sentences.names[left_out], anchors, SHARPNESS) @ ridge(anchors, rows[known])
    cosines = F.normalize(mapped, dim=-1) @ F.normalize(rows[left_out], dim=-1).T
    own = torch.arange(_HELD_OUT)
    return tuple(100 * (cosines.argmax(axis) == own).double().mean().item() for axis in (1, 0))  # type: ignore[return-value]


def make_map() -> tuple[dict[str, Tensor], Sentences, Tensor]:
    """The tensors of the map in float16, the sentences, and the classifier's rows (1000, dim) that they are mapped to.

    Raises:
        UserError: a package is not installed.
    """
    _, head = image_weights()
    sentences, head = read_sentences(), head.double()
    directions = principal_directions(head)
    rows = (head - head.mean(0)) @ directions.T
    tensors = {"anchors": sentences.anchors, "coefficients": ridge(sentences.anchors, rows), "directions": directions}
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}, sentences, rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the map")
    parser.add_argument("--held-out", action="store_true", help="measure maps of 800 classes on the 200 others")
    args = parser.parse_args()
    tensors, sentences, rows = make_map()
    if args.held_out:
        found = torch.tensor([own_row_first(sentences, rows, seed) for seed in range(_SPLITS)])
        for what, values in zip(("names find their row", "rows find their name"), found.T, strict=True):
            print(f"{what}: {values.mean():.1f} ± {values.std():.1f} % of {_HELD_OUT}, {_SPLITS} splits")
    if args.out:
        write_bytes(args.out, save(tensors))


if __name__ == "__main__":
    main()
