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
from fedgraft.core.randomness import generator
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.sources.source import open_source
from fedgraft.data.split import joined
from fedgraft.edge_export.tickets.attack import Attack, PixelRange
from fedgraft.edge_export.tickets.image_pool import Pixels
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.training import Module
from fedgraft.methods.plan import Plan

_BATCH = 128
_FEWEST_CLASSES = 4
"""Of which half can be base and half novel."""
_SCOPES = ("base", "novel")
"""Over both sites, the other scopes measure the same images as the first of these."""


@dataclass(frozen=True)
class ZeroShotTask:
    """Test images to be classified among some classes.

    Attributes:
        name: of a scope or a domain.
        positions: of the images among the examples.
        classes: positions in the class names.
    """

    name: str
    positions: IntArray
    classes: tuple[int, ...]


def zero_shot_tasks(examples: Examples, seed: int) -> list[ZeroShotTask]:
    """The test images of base-to-novel among base and novel classes, and those of each domain among all classes.

    A source with fewer than four classes has one task, all of its images among all classes.
    """
    everything = tuple(range(len(examples.class_names)))
    if len(everything) < _FEWEST_CLASSES:
        return [ZeroShotTask("all", np.arange(len(examples)), everything)]
    plan = Plan.of(RunConfig(protocol="base-to-novel", sites=2, seed=seed, shots=1))
    (fold,) = plan.split(examples).folds
    tasks = [
        ZeroShotTask(scope.name, joined(share.tests[scope.name] for share in fold.sites), scope.classes)
        for scope in fold.scopes
        if scope.name in _SCOPES
    ]
    tested = np.concatenate([task.positions for task in tasks])
    for domain in np.unique(examples.domains[tested]) if len(examples.domain_names) > 1 else ():
        positions = tested[examples.domains[tested] == domain]
        tasks.append(ZeroShotTask(examples.domain_names[domain], positions, everything))
    return tasks


class ZeroShotEvaluator:
    """Test images as pixels and the class bank, ready for several towers.

    Args:
        backbone: whose preprocessing and text tower are used.
        examples: the images.
        tasks: what is measured.
    """

    def __init__(self, backbone: Backbone, examples: Examples, tasks: Sequence[ZeroShotTask]) -> None:
        self._tasks = tasks
        self._labels = torch.from_numpy(examples.labels)
        self._used = joined(task.positions for task in tasks)
        self._pixels = Pixels(backbone, lambda row: examples.load(int(self._used[row])), len(self._used))
        self._bank = backbone.text.encode_classes(examples.class_names, examples.templates).cpu()
        self._scale, self._range = backbone.logit_scale, PixelRange.of(backbone)

    def __len__(self) -> int:
        """The number of test images."""
        return len(self._used)

    @torch.no_grad()
    def clean(self, encode: Module) -> dict[str, float]:
        """Accuracy in percent on every task."""
        rows = np.array_split(np.arange(len(self)), -(-len(self) // _BATCH))
        features = torch.cat([encode(self._pixels[part]) for part in rows])
        return {task.name: self._accuracy(task, features) for task in self._tasks}

    def attacked(self, encode: Module, attack: Attack, seed: int, count: int) -> float:
        """Accuracy in percent among all classes on `count` attacked images, drawn from the seed.

        The attack knows the true class, and raises its cross-entropy.
        """
        chosen = generator(seed, "attacked").permutation(len(self))[:count]
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

    def _accuracy(self, task: ZeroShotTask, features: Tensor) -> float:
        rows: NDArray[np.int64] = np.searchsorted(self._used, task.positions)
        classes = torch.tensor(task.classes)
        predicted = classes[(features[torch.from_numpy(rows)] @ self._bank[classes].T).argmax(1)]
        return float((predicted == self._labels[torch.from_numpy(task.positions)]).float().mean() * 100)


def evaluate(folder: Path, data: str, attack: Attack, attacked: int, seed: int) -> dict[str, Any]:
    """A ticket's zero-shot accuracies beside those of its dense backbone.

    Args:
        folder: the ticket's.
        data: a data source.
        attack: on some of the images.
        attacked: the number of attacked images.
        seed: of the source, the split and the attack.

    Returns:
        Plain JSON: `ticket` and `dense`, each with accuracies in percent and numbers of parameters, and `spec`.

    Raises:
        UserError: there is no such ticket or data, or its backbone has changed.
    """
    backbone = load_backbone(TicketFile.read(folder).source)
    ticket = Ticket.load(folder, backbone)
    examples = open_source(data, seed)
    evaluator = ZeroShotEvaluator(backbone, examples, zero_shot_tasks(examples, seed))
    result: dict[str, Any] = {"spec": asdict(ticket.spec), "source": ticket.source, "fingerprint": ticket.fingerprint}
    for name, one in (("ticket", ticket), ("dense", dense_ticket(backbone))):
        accuracies = {**evaluator.clean(one.vision), "attacked": evaluator.attacked(one.vision, attack, seed, attacked)}
        result[name] = {"accuracy": accuracies, "parameters": one.parameters, "nonzero": one.nonzero}
    return result
