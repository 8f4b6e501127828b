"""What an author would lose: figures that a journal takes, in which no label covers another."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedgraft.data.results import Metric, harmonic_mean
from fedgraft.reports import write_reports
from fedgraft.reports.bands_plot import bands_figure
from fedgraft.reports.cost_plot import Cost, cost_figure
from fedgraft.reports.drawing import COLUMN
from fedgraft.reports.marks import TOLD_APART, marks_of
from fedgraft.reports.sites_plot import FEW, site_spread_figure
from fedgraft.reports.study import read_study
from fedgraft.reports.study_figures import study_figures
from fedgraft.reports.tradeoff_plot import Point, tradeoff_figure
from tests.reports.test_pages import write_run
from tests.reports.test_study import write_comparison

BASE, NOVEL = Metric("base", "Base", ""), Metric("novel", "Novel", "")


def _points(count: int) -> list[Point]:
    """Most of them close together."""
    rng = np.random.default_rng(count)
    spots = 90 + rng.normal(0, 3, (count, 2)).clip(-9, 9)
    return [Point(f"m{n}", x, y, 0.5, 0.5, untrained=n == 0) for n, (x, y) in enumerate(spots)]


def test_lines_of_equal_harmonic_mean_are_that() -> None:
    axes = tradeoff_figure(_points(4), BASE, NOVEL, width=COLUMN).axes[0]
    levels = [text.get_text() for text in axes.texts]
    curves = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 100]
    assert len(levels) == len(curves) >= 2
    for label, curve in zip(levels, curves, strict=True):
        means = [harmonic_mean(float(x), float(y)) for x, y in curve]
        assert means == pytest.approx([float(label.removeprefix("HM "))] * len(means))


def test_dotted_lines_cross_at_the_method_that_trains_nothing() -> None:
    points = _points(4)
    dotted = [
        line.get_xydata() for line in tradeoff_figure(points, BASE, NOVEL).axes[0].lines if len(line.get_xydata()) == 2
    ]
    assert points[0].x in dotted[0][:, 0]
    assert points[0].y in dotted[1][:, 1]


def _assert_apart(figure: Figure) -> None:
    figure.draw_without_rendering()
    for axes in figure.axes:
        numbers = [text for text in axes.texts if text.get_text().isdecimal()]
        boxes = [text.get_window_extent() for text in numbers]
        assert len(boxes) > TOLD_APART
        for one, other in combinations(boxes, 2):
            assert not (one.shrunk(0.8, 0.8).overlaps(other.shrunk(0.8, 0.8)))


def test_numbers_of_many_methods_do_not_cover_each_other() -> None:
    points = _points(30)
    _assert_apart(tradeoff_figure(points, BASE, NOVEL, range(1, 31), COLUMN))
    costs = [Cost(point.name, point.y, 0.5, {"bytes": 10.0 ** (n % 5)}) for n, point in enumerate(points)]
    marks = marks_of([cost.name for cost in costs], [False] * 30)
    _assert_apart(cost_figure(costs, NOVEL, marks, numbered=True, width=COLUMN))


def test_methods_differ_in_more_than_colour() -> None:
    marks = marks_of([f"m{n}" for n in range(TOLD_APART)], [n == 3 for n in range(TOLD_APART)])
    assert len({mark.marker for mark in marks.values()}) == TOLD_APART
    assert marks["m3"].hollow


def test_the_band_goes_from_the_lowest_seed_to_the_highest() -> None:
    curves = {"HM": {"fedpgp": [{0: 10.0, 1: 20.0}, {0: 30.0, 1: 60.0}], "zeroshot": [{0: 40.0}, {0: 42.0}]}}
    axes = bands_figure(curves, marks_of(["zeroshot", "fedpgp"], [True, False]), COLUMN).axes[0]
    bounds = [collection.get_paths()[0].get_extents() for collection in axes.collections]
    assert sorted((box.ymin, box.ymax) for box in bounds) == [(10.0, 60.0), (40.0, 42.0)]
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert [[0.0, 20.0], [1.0, 40.0]] in lines
    assert [[0.0, 41.0], [1.0, 41.0]] in lines, "what trains nothing is a line across"


@pytest.mark.parametrize(("sites", "violins"), [(FEW - 1, 0), (FEW, 1)])
def test_few_sites_are_drawn_one_by_one(sites: int, violins: int) -> None:
    values = list(np.linspace(20, 100, sites))
    scopes = {"local": {"fedpgp": values, "zeroshot": [50.0] * sites}}
    axes = site_spread_figure(scopes, marks_of(["zeroshot", "fedpgp"], [True, False]), COLUMN).axes[0]
    assert len(axes.collections) == violins, "equal values are no density"
    drawn = sum(len(line.get_xydata()) for line in axes.lines if line.get_marker() == "o")
    assert drawn == (0 if violins else sites)


def test_costs_of_nothing_have_a_place_on_logarithmic_axes() -> None:
    costs = [Cost("zeroshot", 90.0, 0.0, {"bytes": 0}), Cost("fedpgp", 91.0, 0.0, {"bytes": 8000})]
    axes = cost_figure(costs, NOVEL, marks_of(["zeroshot", "fedpgp"], [True, False]), numbered=False).axes[0]
    assert axes.get_xticklabels()[0].get_text() == "0"
    assert axes.get_xlim()[0] < axes.get_xticks()[0] < np.log10(8000) < axes.get_xlim()[1]


@pytest.mark.slow  # draws every figure of a comparison and of a run as files
def test_figures_are_files_that_are_the_same_each_time(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "c", {"zeroshot": [60.0, 61], "fedpgp": [64.0, 65]})
    names = [drawing.name for drawing in study_figures(read_study([comparison]))]
    assert names == ["methods", "base-novel", "local-novel", "differences", "cost"]
    paths = write_reports([comparison], ["svg", "pdf", "png"], tmp_path / "out")
    assert [path.name for path in paths[:3]] == ["methods.svg", "methods.pdf", "methods.png"]
    content = {path: path.read_bytes() for path in paths}
    assert all(b"/Type3" not in content[path] for path in paths if path.suffix == ".pdf"), "publishers refuse Type 3"
    assert all(b"<text" in content[path] for path in paths if path.suffix == ".svg")
    assert write_reports([comparison], ["svg", "pdf", "png"], tmp_path / "out") == paths
    assert {path: path.read_bytes() for path in paths} == content
    (tmp_path / "run").mkdir()
    run = write_run(tmp_path / "run", "dirichlet")
    found = {path.name for path in write_reports([run], ["png", "csv"])}
    assert found == {"accuracy.png", "loss.png", "sites.png", "confusion0.png", "results.csv", "sites.csv", "cost.csv"}
