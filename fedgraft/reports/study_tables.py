"""The tables of one or several comparisons: results, paired differences, costs, ranks, and the values of every seed."""

import math
from collections.abc import Sequence

import numpy as np

from fedgraft.data.results import Metric
from fedgraft.reports import units
from fedgraft.reports.conclusions import differences
from fedgraft.reports.significance import (
    WILCOXON_FROM,
    Difference,
    Ranking,
    friedman,
    holm,
    paired_difference,
    wilcoxon,
)
from fedgraft.reports.study import Study
from fedgraft.reports.tables import Cell, Number, Table, measured


def study_tables(study: Study) -> list[Table]:
    """All tables that the study allows."""
    several = len(study.sets) > 1
    tables = [results_table(study), *([by_data_set(study, metric) for metric in study.drawn] if several else [])]
    tables += [table for table in (differences_table(study), ranks_table(study)) if table is not None]
    tables += [] if several else [cost_table(study), *published_table(study)]
    return [*tables, seeds_table(study)]


def results_table(study: Study) -> Table:
    """Each method's results: mean and standard deviation over seeds, or means over data sets."""
    metrics = [study.protocol.metric(key) for key in study.keys]
    best = {metric.key: clear_best(study, metric) for metric in metrics}
    rows: list[tuple[Cell, ...]] = [
        (
            method,
            *(measured(study.mean(method, key), study.spread(method, key), best[key] == method) for key in study.keys),
        )
        for method in study.methods
    ]
    explained = "; ".join(f"{metric.label}: {metric.meaning}" for metric in study.protocol.metrics if metric in metrics)
    return Table("results", f"{_of_what(study)} {_boldness(study)} {explained}.", ("Method", *_labels(metrics)), rows)


def by_data_set(study: Study, metric: Metric) -> Table:
    """One result of each method on each data set, and its mean."""
    rows: list[tuple[Cell, ...]] = [
        (
            method,
            *(
                measured(data.entry(method)["metrics"].get(metric.key, {}).get("mean"), decimals=1)
                for data in study.sets
            ),
            measured(study.mean(method, metric.key), None, clear_best(study, metric) == method, 1),
        )
        for method in study.methods
    ]
    caption = f"{metric.label} on each data set, in percent: {metric.meaning}."
    return Table(f"data-{metric.key}", caption, ("Method", *(data.name for data in study.sets), "Mean"), rows)


def differences_table(study: Study) -> Table | None:
    """Each drawn result of each method minus that of the reference; None where seeds are not known one by one."""
    rows: list[tuple[Cell, ...]] = []
    for metric in study.drawn:
        found = differences(study, metric)
        adjusted = holm([difference.p for difference in found.values()])
        for (method, difference), p in zip(found.items(), adjusted, strict=True):
            over_sets = _over_sets(study, method, metric.key)
            rows.append((metric.label, method, *_difference_cells(difference, p), *over_sets))
    if not rows:
        return None
    where = f"seeds and {len(study.sets)} data sets" if len(study.sets) > 1 else "seeds"
    caption = (
        f"Percentage points above {study.reference}, paired by {where}; 95 % bootstrap interval; two-sided p of the "
        "sign-flip test, and adjusted by Holm's method for the methods of one result."
    )
    head = ("Result", "Method", "Difference", "From", "To", "p", "p (Holm)")
    return Table("differences", caption, (*head, "p over data sets") if _ranked(study) else head, rows)


def ranks_table(study: Study) -> Table | None:
    """Friedman's mean ranks by the headline result; None with too few data sets."""
    ranking = ranking_of(study)
    if ranking is None:
        return None
    caption = (
        f"Mean rank by {study.headline.label} over {len(study.sets)} data sets; Friedman's p is {ranking.p:.2g}, and "
        f"mean ranks less than {ranking.critical_difference:.2f} apart (Nemenyi, 0.05) cannot be told apart."
    )
    rows = [(method, measured(rank)) for method, rank in zip(study.methods, ranking.ranks, strict=True)]
    return Table("ranks", caption, ("Method", "Mean rank"), rows)


def ranking_of(study: Study) -> Ranking | None:
    """Friedman's test by the headline result."""
    means = [
        [data.entry(method)["metrics"].get(study.headline.key, {}).get("mean") for method in study.methods]
        for data in study.sets
    ]
    if any(value is None for row in means for value in row):
        return None
    return friedman(np.array(means, dtype=np.float64), study.headline.lower_is_better)


def cost_table(study: Study) -> Table:
    """What each method sends, trains and takes."""
    head = ("Method", "Uplink per site per round", "Trainable parameters", "Shared parameters", "Wall time")
    rows = []
    for method in study.methods:
        entry = study.sets[0].entry(method)
        sent, seconds = entry.get("uplink_bytes_per_site_round"), entry.get("wall_seconds")
        trained, shared = entry.get("trainable_parameters"), entry.get("shared_parameters")
        rows.append(
            (
                method,
                Number(units.byte_size(sent), sent),
                Number(units.count(trained), trained),
                Number(units.count(shared), shared),
                Number(units.duration(seconds), seconds),
            )
        )
    return Table("cost", "What each method sends, trains and takes.", head, rows)


def published_table(study: Study) -> list[Table]:
    """Figures that others published for this setting, if the comparison has any."""
    published = study.sets[0].content.get("published", [])
    keys = [key for key in study.keys if any(key in row["metrics"] for row in published)]
    rows: list[tuple[Cell, ...]] = [
        (
            str(row["method"]),
            *(measured(row["metrics"].get(key)) for key in keys),
            row["dataset"] or "mean over several",
            str(row["source"]),
            row["copied_from"] or "the method's authors",
            row.get("checked") or "as copied, not checked",
        )
        for row in published
    ]
    head = (
        "Method",
        *_labels([study.protocol.metric(key) for key in keys]),
        "Data",
        "Source",
        "Measured by",
        "Checked on",
    )
    caption = "Figures that others published for this setting, in percent; compare with care."
    return [Table("published", caption, head, rows)] if rows else []


def seeds_table(study: Study) -> Table:
    """Every value by data set, method and seed, for other programs."""
    rows: list[tuple[Cell, ...]] = []
    for data in study.sets:
        for method in study.methods:
            metrics = data.entry(method)["metrics"]
            for number, seed in enumerate(data.content["seeds"]):
                values = [metrics.get(key, {}).get("values") or [] for key in study.keys]
                cells = [measured(each[number] if number < len(each) else None) for each in values]
                rows.append((data.name, method, Number(str(seed), float(seed)), *cells))
    return Table("seeds", "", ("Data", "Method", "Seed", *study.keys), rows, long=True)


def clear_best(study: Study, metric: Metric) -> str | None:
    """The method with the best mean, if it can be told apart from every other; None if not."""
    known = [(method, mean) for method in study.methods if (mean := study.mean(method, metric.key)) is not None]
    known = [(method, mean) for method, mean in known if math.isfinite(mean)]
    if len(known) < 2:
        return None
    best, highest = (min if metric.lower_is_better else max)(known, key=lambda pair: pair[1])
    for method, mean in known:
        if method == best:
            continue
        mine, other = study.values(best, metric.key), study.values(method, metric.key)
        if mine is None or other is None or study.seeds < 2:
            if units.number(mean) == units.number(highest):
                return None
        elif not paired_difference(mine, other).is_clear:
            return None
    return best


def _over_sets(study: Study, method: str, key: str) -> tuple[str | Number, ...]:
    """The p of Wilcoxon's test over data sets, where there are enough."""
    if not _ranked(study):
        return ()
    mine, other = study.values(method, key), study.values(study.reference, key)
    means = [[float(np.mean(group)) for group in groups or []] for groups in (mine, other)]
    p = wilcoxon(*means)
    return (_p(p),)


def _ranked(study: Study) -> bool:
    return len(study.sets) >= WILCOXON_FROM


def _difference_cells(difference: Difference, adjusted: float) -> tuple[Number, ...]:
    signed = [
        Number(f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "n/a", value)
        for value in (difference.mean, difference.low, difference.high)
    ]
    return (*signed, _p(difference.p), _p(adjusted))


def _p(value: float | None) -> Number:
    return Number("< 0.001" if value is not None and value < 0.001 else units.number(value, 3), value)


def _labels(metrics: Sequence[Metric]) -> list[str]:
    return [metric.label for metric in metrics]


def _of_what(study: Study) -> str:
    if len(study.sets) > 1:
        return f"Percent after the last round, mean over {len(study.sets)} data sets."
    spread = f", mean ± standard deviation over {study.seeds} seeds" if study.seeds > 1 else ""
    return f"Percent, after the last round{spread}."


def _boldness(study: Study) -> str:
    if len(study.methods) < 2:
        return ""
    if study.seeds < 2:
        return "The highest value of a column is bold; one seed cannot tell whether another would agree."
    return "The best value of a column is bold where it can be told apart from every other."
