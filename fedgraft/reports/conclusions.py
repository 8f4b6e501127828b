"""What the seeds and data sets of a study can show, in plain words."""

from fedgraft.core.wording import plural
from fedgraft.data.results import Metric
from fedgraft.reports.significance import (
    FRIEDMAN_FROM,
    WILCOXON_FROM,
    Difference,
    paired_difference,
    smallest_p,
)
from fedgraft.reports.study import Study

_ALPHA = 0.05
_FEW = 8
"""Methods up to which a sentence has their intervals; the table has them all."""
_PLENTY = 12
"""Pairs with which the smallest p is no limit in practice."""


def differences(study: Study, metric: Metric) -> dict[str, Difference]:
    """Each other method minus the reference; only those whose values by seed are known."""
    reference = study.values(study.reference, metric.key)
    if reference is None:
        return {}
    others = {method: study.values(method, metric.key) for method in study.methods if method != study.reference}
    return {method: paired_difference(values, reference) for method, values in others.items() if values is not None}


def conclusions(study: Study) -> list[str]:
    """Sentences: what can be shown at all, and what is shown by the headline result."""
    if len(study.methods) < 2:
        return []
    metric = study.headline
    found = differences(study, metric)
    if not found:
        return ["The values of the seeds are not recorded one by one, so nothing is said of significance."]
    if study.seeds < 2 and len(study.sets) == 1:
        return ["One seed shows no significance: run the comparison with --seeds 0,1,2 or more."]
    return [*_power(study, next(iter(found.values()))), *_verdict(study, metric, found), *_over_sets(study)]


def _power(study: Study, difference: Difference) -> list[str]:
    """What so many pairs can show."""
    pairs, least = difference.pairs, difference.smallest_p
    what = plural(study.seeds, "seed") if len(study.sets) == 1 else f"{pairs} pairs of seed and data set"
    if least > _ALPHA:
        enough = next(count for count in range(pairs, 99) if smallest_p(count) <= _ALPHA)
        return [
            f"{what} cannot show significance below p = {least:.2g}, however large the difference is; {enough} could "
            f"(p = {smallest_p(enough):.2g}). Intervals from so few describe these seeds alone."
        ]
    return [f"{what} can show p = {least:.2g} at best."] if pairs < _PLENTY else []


def _verdict(study: Study, metric: Metric, found: dict[str, Difference]) -> list[str]:
    """Which methods are above and below the reference, and which cannot be told apart from it."""
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "": []}
    for method, difference in found.items():
        side = ("higher" if difference.mean > 0 else "lower") if difference.is_clear else ""
        interval = f" ({difference.mean:+.1f}, {difference.low:+.1f} to {difference.high:+.1f})"
        groups[side].append(f"{method}{interval if len(found) <= _FEW else ''}")
    told = [f"{side}: {', '.join(names)}" for side, names in groups.items() if names and side]
    if groups[""]:
        told.append(f"not told apart: {', '.join(groups[''])}")
    how = ", in points with 95 % intervals" if len(found) <= _FEW else ""
    return [f"{metric.label} against {study.reference}{how}: {'; '.join(told)}."]


def _over_sets(study: Study) -> list[str]:
    """What the number of data sets allows to say of data sets in general."""
    count, sentences = len(study.sets), []
    if count == 1:
        return []
    if len({data.content["data"] for data in study.sets}) < count:
        sentences.append("Several of these comparisons are of the same data; they are no independent data sets.")
    if count < WILCOXON_FROM:
        sentences.append(
            f"{count} data sets are too few to speak of data sets in general: Wilcoxon's signed-rank test takes at "
            f"least {WILCOXON_FROM}, Friedman's {FRIEDMAN_FROM}. What is said holds for these."
        )
    elif count < FRIEDMAN_FROM:
        sentences.append(f"Friedman's test takes at least {FRIEDMAN_FROM} data sets, and there are {count}.")
    return sentences
