"""What an author would lose: tables that LaTeX, Markdown and other programs read as they were meant."""

import csv
import io

import pytest

from fedgraft.reports.tables import Number, Table, latex_text, measured, to_csv, to_html, to_latex, to_markdown

TABLE = Table(
    "results",
    "Percent, 50 % & more.",
    ("Method", "HM_2", "Bytes"),
    [
        ("promptfl(ctx_init=a|b)", measured(61.256, 0.5, best=True), Number("1.2 kB", 1234.0)),
        ("a & b", measured(None), Number("n/a", None)),
    ],
)


def test_latex_is_escaped_and_bold_only_where_best() -> None:
    text = to_latex(TABLE)
    assert r"\begin{tabular}{lrr}" in text
    assert r"promptfl(ctx\_init=a\textbar{}b) & \textbf{61.26 $\pm$ 0.50} & 1.2 kB \\" in text
    assert r"a \& b & n/a & n/a \\" in text
    assert r"\caption{Percent, 50 \% \& more.}" in text
    assert r"HM\_2" in text
    assert text.count(r"\textbf") == 1
    assert [rule for rule in (r"\toprule", r"\midrule", r"\bottomrule") if text.count(rule) != 1] == []
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("character", list("\\&%$#_{}~^<>|"))
def test_no_character_breaks_latex(character: str) -> None:
    escaped = latex_text(character)
    assert escaped != character
    assert escaped.startswith("\\")


def test_markdown_keeps_its_columns() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "| Method | HM_2 | Bytes |"
    assert lines[1] == "| :--- | ---: | ---: |"
    assert lines[2] == r"| promptfl(ctx_init=a\|b) | **61.26 ± 0.50** | 1.2 kB |"


def test_csv_has_unrounded_numbers_and_no_units() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == ["Method", "HM_2", "HM_2 std", "Bytes"]
    assert rows[1] == ["promptfl(ctx_init=a|b)", "61.256", "0.5", "1234"]
    assert rows[2] == ["a & b", "", "", ""]


def test_html_is_escaped() -> None:
    page = to_html(TABLE)
    assert "<strong>61.26 ± 0.50</strong>" in page
    assert "a &amp; b" in page


def test_a_table_too_wide_for_a_column_takes_the_page() -> None:
    wide = Table("wide", "", tuple("abcdef"), [tuple(map(measured, range(6)))])
    assert to_latex(wide).startswith(r"\begin{table*}")
    assert to_latex(TABLE).startswith("\\begin{table}\n")
