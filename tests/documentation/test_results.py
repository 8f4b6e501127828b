"""The tables of docs/results.md that are made from kept results show these."""

from pathlib import Path

from benchmarks.photo_methods import BEGIN, END, PAGE, tables

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_results_on_photo() -> None:
    """`python -m benchmarks.photo_methods --write` after new runs."""
    _, _, rest = (ROOT / PAGE).read_text().partition(BEGIN)
    assert rest.partition(END)[0].strip() == tables().strip()
