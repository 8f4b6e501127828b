"""Compare methods and strategies under one configuration and several seeds: equal data, rounds, epochs and shots."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.config.notation import parse_terms, split
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import sorted_into_tables
from fedgraft.core.errors import UserError, unknown
from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples
from fedgraft.data.protocols.protocol import flat_results
from fedgraft.methods.plan import Plan
from fedgraft.reports import write_report
from fedgraft.reports.comparison_plots import comparison_figure
from fedgraft.reports.retention import flat_retention
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.engine import Resources, open_engine
from fedgraft.simulation.simulate import simulate_on


@dataclass(frozen=True)
class Entry:
    """One entry of a comparison: `METHOD` or `METHOD(option=value, ...)`, optionally followed by `+STRATEGY`.

    Attributes:
        label: as the user wrote it.
        options: of the method; they take precedence over those of the whole comparison.
        strategy: empty for that of the whole comparison.
    """

    label: str
    method: str
    options: dict[str, Any]
    strategy: str

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Parse what the user wrote; raises UserError if it is not METHOD or METHOD+STRATEGY."""
        first, *rest = split(text, "+")
        terms = parse_terms(first)
        if len(terms) != 1:
            raise UserError(f"{text!r} names no method; an entry is METHOD or METHOD+STRATEGY.")
        return cls(text.strip(), terms[0].name, terms[0].options, "+".join(word.strip() for word in rest))

    def run_name(self, seed: int) -> str:
        """The name of a run's directory."""
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.label).rstrip('_')}-seed{seed}"


def compare(
    settings: dict[str, Any],
    methods: list[str],
    seeds: list[int],
    out: Path | str,
    *,
    resume: bool = False,
    resources: Resources | None = None,
    observer: Observer | None = None,
    published: Sequence[dict[str, Any]] = (),
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every method with every seed and return what comparison.json holds.

    On this machine the runs share their worker processes; on a Ray cluster each run has its own.

    Args:
        settings: keys of `RunConfig` except method and seed. A method option applies to the methods that have it.
        methods: registered methods, each as `Entry` parses it, such as "promptfl" or "promptfl+anchored(drift=0.05)";
            "all" alone for all that can be run with these settings.
        out: directory of the comparison, with a run directory for each run, and the plot comparison.png.
        resume: skip finished runs and resume the one that was stopped.
        resources: as in `simulate`.
        published: figures to stand beside these results: dictionaries with `method`, `metrics`, `source`,
            `copied_from` and `checked`.
        missing: a sentence for each method of a recipe that cannot run, to stand below these results.

    Raises:
        UserError: there is a mistake in the settings, or the directory holds something else.
    """
    observer = observer or Observer()
    out = Path(out)
    if list(methods) == ["all"]:
        methods, left_out = every_method(settings)
        for sentence in left_out:
            observer.on_notice(sentence)
    entries = [Entry.parse(text) for text in methods]
    if not entries or not seeds:
        raise UserError("A comparison needs at least one method and one seed.")
    settings = sorted_into_tables(settings, [entry.method for entry in entries])
    configs = {
        entry.run_name(seed): RunConfig.build({**settings, **_own(settings, entry, entries), "seed": seed})
        for seed in seeds
        for entry in entries
    }
    if len(configs) < len(entries) * len(seeds):
        raise UserError("A comparison must name each method and each seed only once.")
    for config in configs.values():
        Plan.of(config).require_backbone()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a directory.")
    if not resume and out.exists() and any(out.iterdir()):
        raise UserError(f"The directory {out} is not empty; add --resume to resume it or give another --out.")
    summaries: dict[str, dict[str, Any]] = {}
    open_examples = _Examples()
    with open_engine(resources or Resources()) as engine:
        for name, config in configs.items():
            observer.on_notice(name)
            run = RunDirectory(out / name)
            begun = resume and run.begun
            reported = begun and run.finished and run.report.exists()
            summaries[name] = simulate_on(engine, config, run.path, begun, observer, open_examples)
            if not reported:
                write_report(run.path)
    comparison = _comparison(configs, summaries, entries, seeds)
    comparison |= {"published": list(published), "missing": list(missing)}
    RunDirectory(out).write_json("comparison.json", comparison)
    comparison_figure(comparison).savefig(out / "comparison.png", dpi=150)
    return comparison


def every_method(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """All methods that these settings, the strategy and the backbone among them, can be run with, and why not others.

    Raises:
        UserError: there is none.
    """
    names, left_out = list(METHODS.names()), []
    entries = [Entry.parse(name) for name in names]
    given = sorted_into_tables(settings, names)
    for entry in entries:
        try:
            Plan.of(RunConfig.build({**given, **_own(given, entry, entries)})).require_backbone()
        except UserError as error:
            names.remove(entry.method)
            left_out.append(f"{entry.method} is left out. {error}")
    if not names:
        raise UserError(f"No method can be run with these settings; {left_out[0]}")
    return names, left_out


class _Examples:
    """Opens the examples of one run after another; consecutive runs with the same data and seed share them."""

    def __init__(self) -> None:
        self._known: tuple[object, Examples] | None = None

    def __call__(self, plan: Plan) -> Examples:
        wanted = (plan.config.data, plan.config.data_options, plan.config.seed)
        if self._known is None or self._known[0] != wanted:
            self._known = wanted, plan.open_examples()
        return self._known[1]


def _own(settings: dict[str, Any], entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    """The entry's method and strategy, with the given options that the method has.

    Raises:
        UserError: no method of the comparison has one of the options.
    """
    given = settings.get("method_options", {})
    fields = {other.method: METHODS.load(other.method).options.model_fields for other in entries}
    known = sorted({key for options in fields.values() for key in options})
    for key in given:
        if key not in known:
            raise unknown("option of these methods", key, known)
    options = {key: given[key] for key in given if key in fields[entry.method]}
    strategy = entry.strategy or settings.get("strategy", "")
    return {"method": entry.method, "method_options": {**options, **entry.options}, "strategy": strategy}


def _comparison(
    configs: dict[str, RunConfig], summaries: dict[str, dict[str, Any]], compared: Sequence[Entry], seeds: list[int]
) -> dict[str, Any]:
    first = next(iter(configs.values()))
    entries = []
    for entry in compared:
        runs = [summaries[entry.run_name(seed)] for seed in seeds]
        flat = [flat_results(run["metrics"]) for run in runs]
        entries.append(
            {
                "method": entry.label,
                "metrics": _over_seeds(flat),
                "retention": _over_seeds([flat_retention(run) for run in runs]),
                "uplink_bytes_per_site_round": runs[0]["uplink_bytes_per_site_round"],
                "trainable_parameters": runs[0]["trainable_parameters"],
                "shared_parameters": runs[0]["shared_parameters"],
                "wall_seconds": float(np.mean([run["wall_seconds"] for run in runs])),
            }
        )
    shared = {key: getattr(first, key) for key in ("data", "protocol", "backbone", "sites", "rounds", "shots")}
    return {**shared, "seeds": seeds, "methods": entries, "runs": list(configs)}


def _over_seeds(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and values of each figure that all runs of an entry have."""
    values = {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}
    return {key: {"mean": float(np.mean(v)), "std": float(np.std(v)), "values": v} for key, v in values.items()}
