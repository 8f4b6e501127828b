"""The dealt data of a run on disk: who holds which image by content key. Written once, read by every process."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fedgraft.data.examples import IntArray
from fedgraft.data.protocols import Deal, Fold, Scope, SiteShare
from fedgraft.errors import UserError
from fedgraft.files import write_bytes

_FILE = "deal.safetensors"


@dataclass(frozen=True)
class DealtData:
    """A deal with the content key (n, 32) of every example."""

    deal: Deal
    keys: NDArray[np.uint8]

    @cached_property
    def used(self) -> IntArray:
        """Positions of the examples that some site trains or tests on, sorted."""
        parts = [share.train for fold in self.deal.folds for share in fold.sites]
        tests = {id(test): test for fold in self.deal.folds for share in fold.sites for test in share.tests.values()}
        return np.unique(np.concatenate([*parts, *tests.values()]))

    def training_positions(self) -> IntArray:
        """Positions of the examples that some site trains on, sorted."""
        return np.unique(np.concatenate([share.train for fold in self.deal.folds for share in fold.sites]))


def write_dealt(run: Path, data: DealtData) -> None:
    """Write a run's deal beside its configuration."""
    arrays: dict[str, NDArray[np.generic]] = {"keys": data.keys, "labels": data.deal.labels}
    shared: dict[int, str] = {}
    folds = []
    for number, fold in enumerate(data.deal.folds):
        sites = []
        for site, share in enumerate(fold.sites):
            arrays[f"{number}/{site}/train"] = share.train
            tests = {}
            for scope, positions in share.tests.items():
                tests[scope] = shared.setdefault(id(positions), f"{number}/{site}/{scope}")
                arrays[tests[scope]] = positions
            sites.append({"train": f"{number}/{site}/train", "tests": tests})
        scopes = [[scope.name, list(scope.classes)] for scope in fold.scopes]
        folds.append({"name": fold.name, "train_classes": list(fold.train_classes), "scopes": scopes, "sites": sites})
    header = {"class_names": data.deal.class_names, "templates": data.deal.templates, "folds": folds}
    write_bytes(run / _FILE, save(arrays, {"deal": json.dumps(header)}))


def read_dealt(run: Path) -> DealtData:
    """Read what `write_dealt` wrote.

    Raises:
        UserError: the file is not there or not whole.
    """
    path = run / _FILE
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["deal"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"The dealt data {path} cannot be read: {error}") from error
    folds = tuple(
        Fold(
            fold["name"],
            tuple(fold["train_classes"]),
            tuple(Scope(name, tuple(classes)) for name, classes in fold["scopes"]),
            tuple(
                SiteShare(arrays[site["train"]], {scope: arrays[name] for scope, name in site["tests"].items()})
                for site in fold["sites"]
            ),
        )
        for fold in header["folds"]
    )
    deal = Deal(tuple(header["class_names"]), tuple(header["templates"]), arrays["labels"], folds)
    return DealtData(deal, arrays["keys"])
