"""What a ticket is worth without any training: zero-shot accuracy on clean and on attacked images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.backbones.base import Backbone
from fedgraft.config import RunConfig
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.protocols import deal
from fedgraft.edge_export.tickets.attack import Attack, PixelRange
from fedgraft.edge_export.tickets.training import Module
from fedgraft.randomness import generator

_BATCH = 128


@dataclass(frozen=True)
class Question:
    """Some test images that are told apart among some classes.

    Attributes:
        name: "base", "novel", or a domain's.
        positions: of the images among the examples.
        classes: positions in the class names.
    """

    name: str
    positions: IntArray
    classes: tuple[int, ...]


def base_and_novel(examples: Examples, seed: int) -> list[Question]:
    """The test images that base-to-novel deals, of base and novel classes; and each domain's among all classes.

    Raises:
        UserError: the source has too few classes or images for the protocol.
    """
    config = RunConfig(protocol="base-to-novel", sites=2, seed=seed, shots=1)
    (fold,) = deal(examples, config).folds
    questions = []
    for scope in fold.scopes:
        positions = np.unique(np.concatenate([share.tests[scope.name] for share in fold.sites]))
        if scope.name in ("base", "novel"):
            questions.append(Question(scope.name, positions, scope.classes))
    tested = np.concatenate([question.positions for question in questions])
    everything = tuple(range(len(examples.class_names)))
    for domain in np.unique(examples.domains[tested]):
        name = examples.domain_names[domain]
        questions.append(Question(name, tested[examples.domains[tested] == domain], everything))
    return questions


class Exam:
    """Test images as pixels and the class bank, ready for several towers.

    Args:
        backbone: whose preprocessing and text tower are used.
        examples: the images.
        questions: what is asked.
    """

    def __init__(self, backbone: Backbone, examples: Examples, questions: Sequence[Question]) -> None:
        self.questions = list(questions)
        self._labels = torch.from_numpy(examples.labels)
        self._used = np.unique(np.concatenate([question.positions for question in questions]))
        parts = np.array_split(self._used, -(-len(self._used) // _BATCH))
        load = examples.load
        self._pixels = torch.cat([backbone.preprocess([load(int(position)) for position in part]) for part in parts])
        self._bank = backbone.text.encode_classes(examples.class_names, examples.templates).cpu()
        self._scale, self._range = backbone.logit_scale, PixelRange.of(backbone)

    @torch.no_grad()
    def clean(self, encode: Module) -> dict[str, float]:
        """Accuracy in percent for every question."""
        features = torch.cat([encode(part) for part in torch.split(self._pixels, _BATCH)])
        return {question.name: self._accuracy(question, features) for question in self.questions}

    def attacked(self, encode: Module, attack: Attack, seed: int, count: int) -> float:
        """Accuracy in percent among all classes on attacked images, `count` of them drawn from the seed.

        The attack raises the cross-entropy of the true class, so it knows more than the tower.
        """
        chosen = torch.from_numpy(generator(seed, "attacked").permutation(len(self._used))[:count])
        rng = generator(seed, "attack")
        right = 0
        for part in torch.split(chosen, _BATCH):
            labels = self._labels[torch.from_numpy(self._used)[part]]

            def loss(pixels: Tensor, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(self._scale * encode(pixels) @ self._bank.T, labels)

            moved = attack(self._pixels[part], loss, self._range, rng)
            with torch.no_grad():
                right += int(((encode(moved) @ self._bank.T).argmax(1) == labels).sum())
        return 100 * right / len(chosen)

    def _accuracy(self, question: Question, features: Tensor) -> float:
        rows: NDArray[np.int64] = np.searchsorted(self._used, question.positions)
        classes = torch.tensor(question.classes)
        predicted = classes[(features[torch.from_numpy(rows)] @ self._bank[classes].T).argmax(1)]
        return float((predicted == self._labels[torch.from_numpy(question.positions)]).float().mean() * 100)
