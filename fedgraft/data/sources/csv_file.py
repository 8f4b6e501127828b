"""A table of images: a line each with path and label, and where known domain, split and writer."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fedgraft.core.errors import UserError, unknown
from fedgraft.data.examples import Examples
from fedgraft.data.sources.folder_layout import SPLITS
from fedgraft.data.sources.labelled_files import (
    FileOptions,
    ImageFile,
    examples_of_files,
    path_below,
    readable,
    sorted_names,
)
from fedgraft.data.sources.source import Source

COLUMNS = ("path", "label", "domain", "split", "site")
_NEEDED = COLUMNS[:2]
_DELIMITERS = ",;\t"


class CsvOptions(FileOptions):
    """Which table to read."""

    file: str = Field(description="path of the table; images are relative to its folder", examples=["photos.csv"])


@dataclass(frozen=True)
class _Row:
    place: str
    cells: dict[str, str]


def open_examples(options: CsvOptions, seed: int) -> Examples:
    """Read a table whose first line names the columns, separated by commas, semicolons or tabs.

    Raises:
        UserError: there is no such file, a line is malformed, or an image is outside the table's folder.
    """
    path = Path(options.file).expanduser()
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"The table {path} has no images, only the line with the names of its columns.")
    _require_all_or_none(path, rows)
    files = [_file(path.parent, row) for row in rows]
    labels = sorted_names({file.label for file in files})
    return examples_of_files(files, labels, [readable(label) for label in labels], path, options)


def _rows(path: Path) -> Iterator[_Row]:
    lines = _text(path)
    delimiter = max(_DELIMITERS, key=lines.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [cell.strip().lower() for cell in next(reader, [])]
        _require_columns(path, columns)
        for cells in reader:
            place = f"Line {reader.line_num} of {path}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise UserError(f"{place} has {len(cells)} cells, but the first line names {len(columns)} columns.")
            yield _Row(place, {column: cell.strip() for column, cell in zip(columns, cells, strict=True)})
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num} of {path} is malformed: {error}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The table {path} is not UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error


def _require_columns(path: Path, columns: list[str]) -> None:
    if missing := [column for column in _NEEDED if column not in columns]:
        raise UserError(
            f"The first line of {path} is {', '.join(columns)!r}, without {' and '.join(map(repr, missing))}; it must "
            f"name the columns: {','.join(_NEEDED)}[,{'][,'.join(COLUMNS[2:])}]."
        )
    for column in columns:
        if column not in COLUMNS:
            raise unknown(f"column of {path}", column, COLUMNS)
    if len(set(columns)) < len(columns):
        raise UserError(f"The first line of {path} names a column twice: {', '.join(columns)}.")


def _file(root: Path, row: _Row) -> ImageFile:
    for column in _NEEDED:
        if not row.cells[column]:
            raise UserError(f"{row.place} has no {column}.")
    split = row.cells.get("split", "")
    if split and split.lower() not in SPLITS:
        raise UserError(f"{row.place} has the split {split!r}; expected train, val or test.")
    return ImageFile(
        path=path_below(root, row.cells["path"], row.place),
        domain=row.cells.get("domain") or "all",
        label=row.cells["label"],
        split=SPLITS[split.lower()] if split else "",
        site=row.cells.get("site", ""),
    )


def _require_all_or_none(path: Path, rows: list[_Row]) -> None:
    """Raise UserError where some images have a domain, split or site and others none."""
    for column in COLUMNS[2:]:
        lacking = sum(not row.cells.get(column) for row in rows)
        if 0 < lacking < len(rows):
            raise UserError(f"{lacking} of the {len(rows)} images of {path} have no {column}, while others have one.")


SOURCE = Source(
    "csv",
    "a table with a line for each image: path,label[,domain][,split][,site]",
    open_examples,
    options=CsvOptions,
    argument="file",
)
