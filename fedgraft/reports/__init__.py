"""The report of a run or of comparisons: a self-contained HTML page, tables for papers, and figures as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedgraft.core.errors import UserError, unknown
from fedgraft.core.files import write_text

if TYPE_CHECKING:
    from fedgraft.reports.content import Content

__all__ = ["FIGURES", "FORMATS", "TABLES", "table_text", "write_report", "write_reports"]

TABLES = ("md", "csv", "latex")
FIGURES = ("svg", "pdf", "png")
FORMATS = ("html", *TABLES, *FIGURES)


def write_report(directory: Path) -> Path:
    """Write `directory/report.html` for the run or comparison in it, and return its path.

    The same files always give the same bytes.

    Raises:
        UserError: the directory holds neither, or one of its files is missing or cannot be read.
    """
    return write_reports([directory])[0]


def write_reports(
    directories: Sequence[Path],
    formats: Sequence[str] = ("html",),
    out: Path | None = None,
    against: str | None = None,
) -> list[Path]:
    """Write what is asked for, and return the paths.

    `report.html`; `tables/tables.md`, `tables/tables.tex`, `tables/NAME.csv`; `figures/NAME.svg` and so on, drawn for a
    column of 3.3 inches.

    Args:
        directories: a run, a comparison, or several comparisons under one protocol.
        formats: of `FORMATS`.
        out: a directory; that of the run or comparison by default.
        against: the method of comparisons that the others are set against; the first by default.

    Raises:
        UserError: a directory holds neither, a format is unknown, or several comparisons have no `out`.
    """
    _check(formats, FORMATS)
    if out is None and len(directories) > 1:
        raise UserError("A report on several comparisons needs a directory of its own; give --out.")
    out = out or directories[0]
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a directory.")
    content = _content(directories, against)
    written = []
    if "html" in formats:
        written.append(out / "report.html")
        page = content.page()
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "report.html", page)
    written += content.write_tables(out / "tables", [name for name in TABLES if name in formats])
    return written + content.write_figures(out / "figures", [name for name in FIGURES if name in formats])


def table_text(directories: Sequence[Path], name: str, against: str | None = None) -> str:
    """The tables in one format; as CSV the first, which holds the results.

    Raises:
        UserError: as `write_reports`.
    """
    _check([name], TABLES)
    return _content(directories, against).table_text(name)


def _check(formats: Sequence[str], known: Sequence[str]) -> None:
    for name in formats:
        if name not in known:
            raise unknown("format", name, known)


def _content(directories: Sequence[Path], against: str | None) -> "Content":
    """What the directories hold; matplotlib is imported only when there is something to report."""
    found = [kind for directory in directories if (kind := _kind(directory))]
    if len(directories) > 1 and "summary.json" in found:
        raise UserError("Several directories are reported together only if each is a comparison (comparison.json).")
    if found[0] == "summary.json":
        if against is not None:
            raise UserError("--against names a method of a comparison, and this is one run.")
        from fedgraft.reports.content import run_content

        return run_content(directories[0])
    from fedgraft.reports.content import study_content

    return study_content(directories, against)


def _kind(directory: Path) -> str:
    """The file that tells a run from a comparison."""
    for name in ("summary.json", "comparison.json"):
        if (directory / name).is_file():
            return name
    raise UserError(_what_was_found(directory))


def _what_was_found(directory: Path) -> str:
    expected = "a report needs a finished run (with summary.json) or a comparison (with comparison.json)"
    if not directory.exists():
        return f"The directory {directory} does not exist; {expected}."
    if not directory.is_dir():
        return f"{directory} is a file; {expected}."
    if (directory / "config.toml").is_file():
        return f"The run in {directory} has no summary.json yet, so it has not finished; {expected}."
    return f"{directory} has neither summary.json nor comparison.json; {expected}."
