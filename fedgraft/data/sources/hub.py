"""A Hugging Face dataset of images with labels, by its ID or a local folder: its splits, domains and writers."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from fedgraft.core.errors import UserError, unknown
from fedgraft.data.examples import SPLIT_NAMES, Examples, IntArray, as_rgb
from fedgraft.data.sources.folder_layout import SPLITS
from fedgraft.data.sources.hub_columns import ColumnOptions, columns_of, named_labels, named_values
from fedgraft.data.sources.labelled_files import readable
from fedgraft.data.sources.row_keys import keys_of_rows
from fedgraft.data.sources.source import Source

_WRITTEN = re.compile(r"(?P<id>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<config>.+))?")


class HubOptions(ColumnOptions):
    """Which dataset to load."""

    id: str = Field(
        description="ID[@REVISION][:CONFIG] of the dataset, or a local folder of Parquet files",
        examples=["ylecun/mnist"],
    )
    split: str = Field(
        "", description="which of its splits to read, as a,b,...; empty for all of them", examples=["train,test"]
    )


def open_examples(options: HubOptions, seed: int) -> Examples:
    """All splits, or those that are asked for, with the classes in the dataset's own order.

    Raises:
        UserError: the dataset cannot be loaded, a column cannot be told or found, or images have no label.
    """
    named, skipped = _tables(options)
    tables = list(named.values())
    columns = columns_of(tables[0].features, options, options.id)
    names, labels = named_labels(tables, columns.label, options.id)
    images = _Images(named, columns.image, options.id)
    faults = images.faults() if options.on_bad_image == "skip" else {}
    kept = np.setdiff1d(np.arange(len(images)), list(faults))
    present = np.unique(labels[kept])
    absent = [
        f"the class {readable(names[label])!r} has no images" for label in sorted({*range(len(names))} - {*present})
    ]
    domain_names, domains = named_values(tables, columns.domain)
    site_names, sites = named_values(tables, columns.site)
    return Examples(
        class_names=tuple(readable(names[label]) for label in present),
        labels=np.searchsorted(present, labels[kept]),
        domain_names=domain_names or ("all",),
        domains=np.zeros(len(kept), np.int64) if domains is None else domains[kept],
        keys=images.keys()[kept],
        load=lambda index: images.load(int(kept[index])),
        splits=_splits(named, kept),
        site_names=site_names,
        sites=None if sites is None else sites[kept],
        skipped=(*skipped, *absent, *faults.values()),
    )


def _tables(options: HubOptions) -> tuple[dict[str, Any], list[str]]:
    """The tables to read by the names of their splits, and a line on those that are left out."""
    loaded = _loaded(options.id)
    asked = [name.strip() for name in options.split.split(",") if name.strip()]
    for name in asked:
        if name not in loaded:
            raise unknown(f"split of the dataset {options.id!r}", name, loaded)
    read = asked or [name for name in loaded if name.lower() in SPLITS] or list(loaded)[:1]
    left_out = [] if asked else [name for name in loaded if name not in read]
    lines = [f"the split {name!r} is for neither training, validation nor testing" for name in left_out]
    return {name: loaded[name] for name in read}, lines


def _loaded(written: str) -> dict[str, Any]:
    """The splits of ID[@REVISION][:CONFIG], or of a local folder; raises UserError if it cannot be loaded."""
    import datasets

    datasets.disable_progress_bars()
    local = Path(written).expanduser()
    parts = None if local.exists() else _WRITTEN.fullmatch(written)
    try:
        if parts is None:
            return dict(datasets.load_dataset(str(local)))
        return dict(datasets.load_dataset(parts["id"], name=parts["config"], revision=parts["revision"]))
    except Exception as error:
        raise UserError(f"The dataset {written!r} cannot be loaded: {_first_line(error)}") from error


def _splits(tables: dict[str, Any], kept: IntArray) -> NDArray[np.int8] | None:
    """The split of each row that is kept; None if all are for training, which leaves testing to `test_fraction`."""
    kinds = [SPLITS.get(name.lower(), "train") for name in tables]
    if set(kinds) == {"train"}:
        return None
    sizes: Sequence[int] = [len(table) for table in tables.values()]
    return np.repeat([SPLIT_NAMES.index(kind) for kind in kinds], sizes).astype(np.int8)[kept]


class _Images:
    """The image column of several tables, one after the other."""

    def __init__(self, tables: dict[str, Any], column: str, name: str) -> None:
        self._names, self._column, self._name = list(tables), column, name
        self._tables = [table.select_columns([column]) for table in tables.values()]
        self._begins = np.cumsum([0, *map(len, self._tables)])

    def __len__(self) -> int:
        """The number of rows of all tables."""
        return int(self._begins[-1])

    def load(self, index: int) -> Image.Image:
        """The image in a row, as RGB; raises UserError if it is damaged."""
        try:
            return self._decoded(index)
        except UserError as error:
            raise UserError(f"{error} To leave out such images: --set on_bad_image=skip.") from error

    def faults(self) -> dict[int, str]:
        """By row, why its image cannot be decoded."""
        return dict(self._damaged())

    def keys(self) -> NDArray[np.uint8]:
        """The content key of each image, (n, 32)."""
        return np.concatenate([keys_of_rows(table, self._column) for table in self._tables])

    def _decoded(self, index: int) -> Image.Image:
        number = int(np.searchsorted(self._begins, index, side="right")) - 1
        row = index - int(self._begins[number])
        try:
            return as_rgb(self._tables[number][row][self._column])
        except Exception as error:  # every decoder raises its own
            where = f"row {row} of {self._names[number]!r} in the dataset {self._name!r}"
            raise UserError(f"The image in {where} cannot be decoded: {error}.") from error

    def _damaged(self) -> Iterator[tuple[int, str]]:
        for index in range(len(self)):
            try:
                self._decoded(index)
            except UserError as error:
                yield index, str(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SOURCE = Source(
    "hf",
    "a Hugging Face dataset of images with labels, as ID[@REVISION][:CONFIG] or a local folder",
    open_examples,
    options=HubOptions,
    argument="id",
)
