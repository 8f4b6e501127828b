"""The split of a run on disk: which site holds which image, by content key. Written once, read by every process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.core.plain_text import plain
from fedgraft.data.split import Fold, Scope, SiteShare, Split

_HEADER = "deal"
"""The metadata key of the header, as named by fedgraft 0.1.0, whose runs can still be read."""


def write_split(path: Path, split: Split) -> None:
    """Write a run's split."""
    arrays: dict[str, NDArray[np.generic]] = {"keys": split.keys, "labels": split.labels}
    shared: dict[int, str] = {}
    folds = []
    for number, fold in enumerate(split.folds):
        sites = []
        for site, share in enumerate(fold.sites):
            arrays[f"{number}/{site}/train"] = share.train
            tests = {}
            for scope, positions in share.tests.items():
                tests[scope] = shared.setdefault(id(positions), f"{number}/{site}/{scope}")
                arrays[tests[scope]] = positions
            sites.append({"train": f"{number}/{site}/train", "tests": tests, "classes": share.classes})
        scopes = [[scope.name, scope.classes, scope.own] for scope in fold.scopes]
        folds.append({"name": fold.name, "train_classes": list(fold.train_classes), "scopes": scopes, "sites": sites})
    header = {
        "class_names": split.class_names,
        "templates": split.templates,
        "class_templates": split.class_templates,
        "folds": folds,
    }
    write_bytes(path, save(arrays, {_HEADER: json.dumps(header)}))


def read_split(path: Path) -> Split:
    """Read what `write_split` wrote; raises UserError if the file is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()[_HEADER])
            return _split(header, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except Exception as error:
        raise UserError(f"The split {path} cannot be read: {plain(f'{type(error).__name__}: {error}')}") from error


def _split(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Split:
    folds = tuple(
        Fold(
            fold["name"],
            tuple(fold["train_classes"]),
            tuple(Scope(name, tuple(classes), *own) for name, classes, *own in fold["scopes"]),
            tuple(_share(site, arrays) for site in fold["sites"]),
        )
        for fold in header["folds"]
    )
    names, templates = tuple(header["class_names"]), tuple(header["templates"])
    class_templates = tuple(map(tuple, header.get("class_templates", ())))
    return Split(names, templates, arrays["labels"], arrays["keys"], folds, class_templates)


def _share(site: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SiteShare:
    tests = {scope: arrays[name] for scope, name in site["tests"].items()}
    return SiteShare(arrays[site["train"]], tests, tuple(site.get("classes", ())))
