"""The report of a run or a comparison: one self-contained HTML file that opens from disk."""

from pathlib import Path

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text
from fedgraft.reports.reading import read_comparison, read_run

__all__ = ["write_report"]


def write_report(directory: Path) -> Path:
    """Write `directory/report.html` for the run or comparison in it, and return its path.

    The same files always give the same bytes.

    Raises:
        UserError: the directory holds neither, or one of its files is missing or cannot be read.
    """
    if (directory / "summary.json").is_file():
        from fedgraft.reports.run import run_page  # matplotlib is imported only when there is something to draw

        page = run_page(read_run(directory))
    elif (directory / "comparison.json").is_file():
        from fedgraft.reports.comparison import comparison_page

        page = comparison_page(read_comparison(directory), directory)
    else:
        raise UserError(_what_was_found(directory))
    path = directory / "report.html"
    write_text(path, page)
    return path


def _what_was_found(directory: Path) -> str:
    expected = "a report needs a finished run (with summary.json) or a comparison (with comparison.json)"
    if not directory.exists():
        return f"The directory {directory} does not exist; {expected}."
    if not directory.is_dir():
        return f"{directory} is a file; {expected}."
    if (directory / "config.toml").is_file():
        return f"The run in {directory} has no summary.json yet, so it has not finished; {expected}."
    return f"{directory} has neither summary.json nor comparison.json; {expected}."
