"""What a report shows, whatever it is printed as: a page, tables, figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgraft.core.files import write_text
from fedgraft.reports.comparison import comparison_page
from fedgraft.reports.drawing import COLUMN, Drawing, save_figure
from fedgraft.reports.reading import read_run
from fedgraft.reports.run import run_figures, run_page, run_tables
from fedgraft.reports.study import read_study
from fedgraft.reports.study_figures import study_figures
from fedgraft.reports.study_tables import study_tables
from fedgraft.reports.tables import Table, to_csv, to_latex, to_markdown

_HEADER = "% \\usepackage{booktabs} in the preamble, and \\usepackage[T1]{fontenc}\n"


@dataclass(frozen=True)
class Content:
    """Everything that a report can show; nothing is drawn before it is asked for."""

    page: Callable[[], str]
    tables: Callable[[], list[Table]]
    figures: Callable[[], list[Drawing]]

    def table_text(self, name: str) -> str:
        """All tables in one format; as CSV the first alone, because a file of CSV holds one table."""
        shown = [table for table in self.tables() if not table.long]
        if name == "csv":
            return to_csv(shown[0])
        return "\n".join(map(to_markdown, shown)) if name == "md" else _HEADER + "\n".join(map(to_latex, shown))

    def write_tables(self, folder: Path, formats: Sequence[str]) -> list[Path]:
        """`tables.md`, `tables.tex`, and a CSV file for each table."""
        texts: dict[str, str] = {}
        for name in formats:
            if name == "csv":
                texts |= {f"{table.name}.csv": to_csv(table) for table in self.tables()}
            else:
                texts["tables.md" if name == "md" else "tables.tex"] = self.table_text(name)
        if texts:
            folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            write_text(folder / file, text)
        return [folder / file for file in texts]

    def write_figures(self, folder: Path, formats: Sequence[str]) -> list[Path]:
        """Each figure at the width of a column."""
        if not formats:
            return []
        drawn = [(drawing.name, drawing.draw(COLUMN)) for drawing in self.figures()]
        return [path for name, figure in drawn for path in save_figure(figure, folder / name, formats)]


def run_content(directory: Path) -> Content:
    """Of one run."""
    run = read_run(directory)
    return Content(lambda: run_page(run), lambda: run_tables(run), lambda: run_figures(run))


def study_content(directories: Sequence[Path], against: str | None) -> Content:
    """Of one comparison or several."""
    study = read_study(directories, against)
    return Content(lambda: comparison_page(study), lambda: study_tables(study), lambda: study_figures(study))
