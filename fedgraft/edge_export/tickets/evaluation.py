"""What a ticket is worth without any training: zero-shot accuracy on clean and on attacked images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.backbones import load_backbone
from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.ticket_backbone import TicketFile
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.protocols.protocol import deal
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.tickets.attack import Attack, PixelRange
from fedgraft.edge_export.tickets.image_pool import Pixels
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.training import Module
from fedgraft.core.randomness import generator

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

    A source of fewer than four classes has one question, all of its images among all classes.
    """
    if len(examples.class_names) < 4:
        return [Question("all", np.arange(len(examples)), tuple(range(len(examples.class_names))))]
    config = RunConfig(protocol="base-to-novel", sites=2, seed=seed, shots=1)
    (fold,) = deal(examples, config).folds
    questions = []
    for scope in fold.scopes:
        positions = np.unique(np.concatenate([share.tests[scope.name] for share in fold.sites]))
        if scope.name in ("base", "novel"):
            questions.append(Question(scope.name, positions, scope.classes))
    tested = np.concatenate([question.positions for question in questions])
    everything = tuple(range(len(examples.class_names)))
    for domain in np.unique(examples.domains[tested]) if len(examples.domain_names) > 1 else ():
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
        self._pixels = Pixels(backbone, lambda row: examples.load(int(self._used[row])), len(self._used))
        self._bank = backbone.text.encode_classes(examples.class_names, examples.templates).cpu()
        self._scale, self._range = backbone.logit_scale, PixelRange.of(backbone)

    @torch.no_grad()
    def clean(self, encode: Module) -> dict[str, float]:
        """Accuracy in percent for every question."""
        rows = np.array_split(np.arange(len(self._used)), -(-len(self._used) // _BATCH))
        features = torch.cat([encode(self._pixels[part]) for part in rows])
        return {question.name: self._accuracy(question, features) for question in self.questions}

    def attacked(self, encode: Module, attack: Attack, seed: int, count: int) -> float:
        """Accuracy in percent among all classes on attacked images, `count` of them drawn from the seed.

        The attack raises the cross-entropy of the true class, so it knows more than the tower.
        """
        chosen = generator(seed, "attacked").permutation(len(self._used))[:count]
        rng = generator(seed, "attack")
        right = 0
        for part in np.array_split(chosen, -(-len(chosen) // _BATCH)):
            labels = self._labels[torch.from_numpy(self._used[part])]

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


def evaluate(folder: Path, data: str, attack: Attack, attacked: int, seed: int) -> dict[str, Any]:
    """A ticket's zero-shot accuracies beside those of the backbone that it was drawn from.

    Args:
        folder: the ticket's.
        data: a data source.
        attack: of the images that are attacked.
        attacked: how many images are attacked.
        seed: of the source, the deal and the attack.

    Returns:
        Plain JSON: `ticket` and `dense`, each with accuracies in percent and the number of parameters, and `spec`.

    Raises:
        UserError: no such ticket, its backbone is another one, or no such data.
    """
    backbone = load_backbone(TicketFile.read(folder).source)
    ticket = Ticket.load(folder, backbone)
    examples = open_source(data, seed)
    exam = Exam(backbone, examples, base_and_novel(examples, seed))
    result: dict[str, Any] = {"spec": asdict(ticket.spec), "source": ticket.source, "fingerprint": ticket.fingerprint}
    for name, one in (("ticket", ticket), ("dense", dense_ticket(backbone))):
        accuracies = {**exam.clean(one.vision), "attacked": exam.attacked(one.vision, attack, seed, attacked)}
        result[name] = {"accuracy": accuracies, "parameters": one.parameters, "nonzero": one.nonzero}
    return result
