"""The figures of one or several comparisons, each with its title and caption, to be drawn at any width."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fedgraft.reports.bands_plot import bands_figure
from fedgraft.reports.compared_runs import PANELS
from fedgraft.reports.comparison_plots import comparison_figure
from fedgraft.reports.conclusions import differences
from fedgraft.reports.cost_plot import Cost, cost_figure
from fedgraft.reports.differences_plot import differences_figure
from fedgraft.reports.drawing import Drawing
from fedgraft.reports.marks import TOLD_APART, Mark, marks_of
from fedgraft.reports.sites_plot import FEW, site_spread_figure
from fedgraft.reports.study import Study
from fedgraft.reports.tradeoff_plot import Point, tradeoff_figure


def study_figures(study: Study) -> list[Drawing]:
    """All figures that the study allows."""
    single = len(study.sets) == 1
    figures = [_bars(study)] if single else []
    figures += [*_tradeoffs(study), *_differences(study)]
    return [*figures, *_rounds(study), *_sites(study), *_cost(study)] if single else figures


def _bars(study: Study) -> Drawing:
    errors = "; the whiskers are the standard deviation over seeds" if study.seeds > 1 else ""
    return Drawing(
        "methods",
        "Accuracy by method",
        f"Accuracy of each method after the last round, in percent{errors}.",
        lambda width: comparison_figure(study.sets[0].content, width),
    )


def _tradeoffs(study: Study) -> list[Drawing]:
    figures = []
    numbered = _numbered(study)
    for right, up in study.protocol.tradeoffs:
        points, numbers = [], []
        for number, (method, untrained) in enumerate(zip(study.methods, study.untrained, strict=True), 1):
            x, y = study.mean(method, right), study.mean(method, up)
            if x is not None and y is not None:
                spreads = study.spread(method, right) or 0.0, study.spread(method, up) or 0.0
                points.append(Point(method, x, y, *spreads, untrained))
                numbers.append(number)
        if not points:
            continue
        across, upwards = study.protocol.metric(right), study.protocol.metric(up)
        caption = f"{across.label}: {across.meaning}. {upwards.label}: {upwards.meaning}. "
        caption += "The harmonic mean of both is the same along a dashed line"
        caption += "; dotted lines cross at the method that trains nothing." if any(study.untrained) else "."
        if study.seeds > 1 and len(study.sets) == 1 and not numbered:
            caption += " Whiskers: standard deviation over seeds."

        def draw(width: float, points=points, across=across, upwards=upwards, numbers=numbers) -> Figure:  # type: ignore[no-untyped-def]
            return tradeoff_figure(points, across, upwards, numbers if numbered else None, width)

        figures.append(Drawing(f"{right}-{up}", f"{across.label} against {upwards.label.lower()}", caption, draw))
    return figures


def _differences(study: Study) -> list[Drawing]:
    if study.seeds < 2 and len(study.sets) < 2:
        return []
    shown = study.drawn[:PANELS]
    if study.headline in study.drawn and study.headline not in shown:
        shown = [*shown[:-1], study.headline]
    results = {metric.label: found for metric in shown if (found := differences(study, metric))}
    if not results:
        return []
    where = "seeds" if len(study.sets) == 1 else "seeds and data sets"
    caption = (
        f"Percentage points above {study.reference}, paired by {where}, with 95 % bootstrap intervals; filled where "
        "the method can be told apart from it."
    )
    return [
        Drawing(
            "differences",
            f"Against {study.reference}",
            caption,
            lambda width: differences_figure(results, _marks(study), study.reference, width),
        )
    ]


def _rounds(study: Study) -> list[Drawing]:
    chosen = _best_few(study)
    curves = {
        study.protocol.metric(key).label: {name: methods[name] for name in chosen if name in methods}
        for key, methods in study.sets[0].runs.curves.items()
    }
    curves = {label: methods for label, methods in curves.items() if methods}
    if not any(len(curve) > 1 for methods in curves.values() for seeds in methods.values() for curve in seeds):
        return []
    caption = "After each round, mean over sites"
    caption += "; lines are means over seeds, bands from the lowest seed to the highest." if study.seeds > 1 else "."
    if len(chosen) < len(study.methods):
        caption += f" Shown are the {len(chosen)} methods with the best {study.headline.label}."
    marks = marks_of(chosen, [dict(zip(study.methods, study.untrained, strict=True))[name] for name in chosen])
    return [Drawing("rounds", "Round by round", caption, lambda width: bands_figure(curves, marks, width))]


def _sites(study: Study) -> list[Drawing]:
    scopes: Mapping[str, Mapping[str, Sequence[float]]] = study.sets[0].runs.sites
    if not scopes:
        return []
    many = any(len(values) >= FEW for methods in scopes.values() for values in methods.values())
    of_seeds = " of all seeds" if study.seeds > 1 else ""
    shown = f"Sites{of_seeds} after the last round; " + (
        "a violin is their density, its bar the middle half, its line the mean." if many else "the line is their mean."
    )
    return [Drawing("sites", "Site by site", shown, lambda width: site_spread_figure(scopes, _marks(study), width))]


def _cost(study: Study) -> list[Drawing]:
    metric, costs = study.headline, []
    for method in study.methods:
        entry = study.sets[0].entry(method)
        kinds = {
            "uplink, bytes": entry.get("uplink_bytes_per_site_round"),
            "time, s": entry.get("wall_seconds"),
            "parameters": entry.get("trainable_parameters"),
        }
        if (reached := study.mean(method, metric.key)) is not None:
            costs.append(Cost(method, reached, study.spread(method, metric.key) or 0.0, kinds))
    if not costs:
        return []
    caption = (
        f"{metric.label} against uplink bytes per site per round, wall time of a run on the machine that ran it, and "
        "trained parameters."
    )
    return [
        Drawing(
            "cost",
            "Cost against accuracy",
            caption,
            lambda width: cost_figure(costs, metric, _marks(study), _numbered(study), width),
        )
    ]


def _marks(study: Study) -> dict[str, Mark]:
    return marks_of(study.methods, study.untrained)


def _numbered(study: Study) -> bool:
    return len(study.methods) > TOLD_APART


def _best_few(study: Study) -> list[str]:
    """As many methods as marks tell apart, in their order: those with the best headline result."""
    sign = 1 if study.headline.lower_is_better else -1
    ranked = sorted(study.methods, key=lambda method: sign * (study.mean(method, study.headline.key) or 0.0))
    return [method for method in study.methods if method in ranked[:TOLD_APART]]
