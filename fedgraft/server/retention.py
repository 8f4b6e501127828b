"""Retention: what a model still knows, after the last round, of classes that nobody holds.

Two probes of names, without images: up to 128 of the broad list that the drift monitor has, and the run's own classes
that no site trains on, where the protocol has some. Under the adapted text features t_c and the frozen ones z_c of a
probe's names, each at unit norm,

    cosine   mean_c t_c . z_c
    centred  mean_c cos(t_c - mean t, z_c - mean z), without what all names have in common
    nearest  for how many c, in percent, z_c is the nearest of all z to t_c

Names are seen by the server, so personal parameters have the values of a model of all sites. Where the protocol
measures classes that nobody holds with images, their accuracy stands beside that of the hand-written templates; there
every site has its own personal parameters.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DEFAULT_TEMPLATES
from fedgraft.data.results import Row
from fedgraft.data.split import Fold, Split
from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.drift_monitor import unheld_names
from fedgraft.server.name_probe import NameProbe

AT_MOST = 128
"""Names of a probe: two passes of the text tower over so many at the end of a run."""
VOCABULARY, UNHELD = "vocabulary", "unheld"
_T = TypeVar("_T")


def name_retention(adapted: Tensor, frozen: Tensor) -> dict[str, float]:
    """The three figures, and the number of names, from unit features (C, dim) of the same names."""
    adapted, frozen = adapted.double().cpu(), frozen.double().cpu()
    centred = F.cosine_similarity(adapted - adapted.mean(0), frozen - frozen.mean(0), dim=-1)
    nearest = (adapted @ frozen.mT).argmax(-1) == torch.arange(len(frozen))
    return {
        "names": len(frozen),
        "cosine": float((adapted * frozen).sum(-1).mean()),
        "centred": float(centred.mean()),
        "nearest": 100 * float(nearest.double().mean()),
    }


def unheld_classes(fold: Fold) -> tuple[int, ...]:
    """The classes that a federation measures and that are in no site's softmax, ascending."""
    held = set(fold.train_classes).union(*(fold.classes_of(share) for share in fold.sites))
    return tuple(sorted({index for scope in fold.scopes for index in scope.classes} - held))


class Retention:
    """Measures the models of a run's folds; what is frozen is computed once for all of them."""

    def __init__(self, plan: Plan, backbone: Backbone, split: Split) -> None:
        self._plan, self._split = plan, split
        self._own = Vocabulary.of(backbone, split)
        self._broad = Vocabulary(backbone, _spread(unheld_names(backbone, split.class_names)), DEFAULT_TEMPLATES)

    def measured(
        self, trained: Sequence[Arrays], rows: Sequence[Row], zero_shot: dict[str, float]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """What summary.json holds: `names`, by probe, as a mean over folds; and `images`, by scope.

        Args:
            trained: the last shared parameters of each fold; of none whose names cannot be seen by the server.
            rows: of metrics.jsonl.
            zero_shot: accuracy in percent by scope.
        """
        by_probe: dict[str, list[dict[str, float]]] = {}
        for fold, arrays in zip(self._split.folds, trained, strict=True):
            for probe, figures in self._names(fold, arrays).items():
                by_probe.setdefault(probe, []).append(figures)
        names = {probe: _mean(found) for probe, found in by_probe.items()}
        return {"names": names, "images": self._images(rows, zero_shot)}

    def _names(self, fold: Fold, arrays: Arrays) -> dict[str, dict[str, float]]:
        """The figures of each probe that there can be: none for a method that shares nothing."""
        if not arrays:
            return {}
        unheld = _spread(unheld_classes(fold))
        wanted = {UNHELD: (self._own, unheld)} if len(unheld) > 1 else {}
        wanted[VOCABULARY] = (self._broad, tuple(range(len(self._broad.class_names))))
        found = {}
        for name, (vocabulary, classes) in wanted.items():
            try:
                probe = NameProbe(self._plan, vocabulary, classes)
                if vocabulary is self._own or not probe.adapter.class_specific:
                    found[name] = name_retention(probe.features(arrays, impersonal=True), probe.written)
            except UserError:  # no model of all sites, or names that do not fit behind a long context
                continue
        return found

    def _images(self, rows: Sequence[Row], zero_shot: dict[str, float]) -> dict[str, dict[str, float]]:
        found = {}
        for fold in self._split.folds:
            unheld = set(unheld_classes(fold))
            for scope in fold.scopes:
                series = fold.series(scope.name)
                of_scope = [row for row in rows if row["scope"] == scope.name and row["fold"] == fold.name]
                if of_scope and series in zero_shot and unheld.issuperset(scope.classes):
                    last = max(of_scope, key=lambda row: int(row["round"]))
                    found[series] = {"zero_shot": zero_shot[series], "adapted": float(last["accuracy"])}
        return found


def _spread(values: Sequence[_T]) -> tuple[_T, ...]:
    """At most `AT_MOST` of some values, at equal distances."""
    places = np.linspace(0, len(values) - 1, min(len(values), AT_MOST)).round().astype(int)
    return tuple(values[place] for place in places)


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {key: float(np.mean([each[key] for each in figures])) for key in figures[0]}
    return {**means, "names": round(means["names"])}
