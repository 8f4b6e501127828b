"""What the columns of a Hugging Face dataset mean: which holds the image, the label, the domain and the writer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from fedgraft.core.errors import UserError, unknown
from fedgraft.data.examples import IntArray
from fedgraft.data.sources.labelled_files import FileOptions, sorted_names

LABEL_COLUMN, DOMAIN_COLUMN = "label", "domain"
SITE_COLUMNS = ("writer_id", "center", "hospital", "camera", "client_id", "user_id", "site")
"""Columns that tell whom an image is from, where no other is named; the first that there is."""


class ColumnOptions(FileOptions):
    """Which columns to read."""

    image_column: str = Field("", description="column of the images; empty for the only one", examples=["img"])
    label_column: str = Field(
        "", description="column of the labels; empty for label or the only one of classes", examples=["fine_label"]
    )
    domain_column: str = Field("", description="column of the domains; empty for domain if any", examples=["style"])
    site_column: str = Field(
        "", description="column of writers, hospitals or cameras; empty for writer_id, center, ...", examples=["user"]
    )


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None for what the dataset does not have."""

    image: str
    label: str
    domain: str | None
    site: str | None


def columns_of(features: Any, options: ColumnOptions, name: str) -> Columns:
    """The columns that the options name, or else those that are recognized by name or type.

    Raises:
        UserError: the dataset called `name` has no such column, or several from which one must be chosen.
    """
    import datasets

    def given(column: str, otherwise: str | None) -> str | None:
        if column and column not in features:
            raise unknown(f"column of the dataset {name!r}", column, features)
        return column or otherwise

    domain = given(options.domain_column, _first_of((DOMAIN_COLUMN,), features))
    site = given(options.site_column, _first_of(SITE_COLUMNS, features))
    label = given(options.label_column, _first_of((LABEL_COLUMN,), features))
    image = given(options.image_column, None)
    others = {key: feature for key, feature in features.items() if key not in (domain, site)}
    image = image or _only(others, datasets.Image, "image_column", name)
    label = label or _only(others, datasets.ClassLabel, "label_column", name)
    if not isinstance(features[image], datasets.Image):
        raise UserError(f"The column {image!r} of the dataset {name!r} holds {features[image]}, not images.")
    if not isinstance(features[label], datasets.ClassLabel | datasets.Value):
        raise UserError(
            f"The column {label!r} of the dataset {name!r} holds {features[label]}, not one label an image."
        )
    return Columns(image, label, domain, site)


def named_labels(tables: Sequence[Any], column: str, name: str) -> tuple[list[str], IntArray]:
    """The classes in the dataset's own order, or sorted where it has none, and the label of each row.

    Raises:
        UserError: images have no label.
    """
    import datasets

    values = _values(tables, column)
    feature = tables[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        labels = np.asarray([-1 if value is None else value for value in values], np.int64)
    else:
        texts = ["" if value is None else str(value).strip() for value in values]
        names = sorted_names(set(texts) - {""})
        known = {text: position for position, text in enumerate(names)}
        labels = np.asarray([known.get(text, -1) for text in texts], np.int64)
    if missing := int((labels < 0).sum()):
        raise UserError(
            f"{missing} of the {len(labels)} images of the dataset {name!r} have no label in the column {column!r}; "
            "filter them out."
        )
    return names, labels


def named_values(tables: Sequence[Any], column: str | None) -> tuple[tuple[str, ...], IntArray | None]:
    """The names in a column, sorted, and each row's position in them; nothing where there is no such column."""
    import datasets

    if column is None:
        return (), None
    feature, values = tables[0].features[column], _values(tables, column)
    if isinstance(feature, datasets.ClassLabel):
        values = [value if value is None else feature.int2str(value) for value in values]
    texts = [str(value) for value in values]
    names = sorted_names(set(texts))
    known = {text: position for position, text in enumerate(names)}
    return tuple(names), np.asarray([known[text] for text in texts], np.int64)


def _first_of(wanted: Sequence[str], features: Any) -> str | None:
    return next((name for name in wanted if name in features), None)


def _only(features: dict[str, Any], kind: type, option: str, name: str) -> str:
    """The only column of a type; raises UserError if there is none, or one must be chosen."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    several = f"several columns of type {kind.__name__}: {', '.join(found)}"
    none = f"no column of type {kind.__name__}; its columns are {list(features)}"
    raise UserError(f"The dataset {name!r} has {several if found else none}. Choose one with --set {option}=NAME.")


def _values(tables: Sequence[Any], column: str) -> list[Any]:
    return [value for table in tables for value in table.data.column(column).to_pylist()]
