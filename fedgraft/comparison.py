"""Compare methods under one configuration and several seeds: equal data, rounds, epochs and shots."""

from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.config import RunConfig
from fedgraft.errors import UserError, unknown
from fedgraft.methods import load_method
from fedgraft.server.observer import Observer
from fedgraft.server.report import write_report
from fedgraft.server.report.comparison_plots import comparison_figure
from fedgraft.server.run_directory import RunDirectory
from fedgraft.simulation import check_method_and_strategy, simulate


def compare(
    settings: dict[str, Any],
    methods: list[str],
    seeds: list[int],
    out: Path | str,
    *,
    resume: bool = False,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run every method with every seed and return what comparison.json holds.

    Args:
        settings: keys of `RunConfig` but method and seed. A method option goes to the methods that have it.
        methods: names of registered methods.
        out: directory of the comparison; each run is a run directory below it, comparison.png the plot.
        resume: skip finished runs and go on with the one that was stopped.
        workers, gpus_per_worker, ray_address: as `simulate` takes them.

    Raises:
        UserError: a mistake in the settings, or a directory that holds something else.
    """
    observer = observer or Observer()
    out = Path(out)
    if not methods or not seeds:
        raise UserError("A comparison needs at least one method and one seed.")
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds):
        raise UserError("A comparison names each method and each seed once.")
    configs = {
        f"{method}-seed{seed}": RunConfig.build({**settings, **_own(settings, method, methods), "seed": seed})
        for method in methods
        for seed in seeds
    }
    for config in configs.values():
        check_method_and_strategy(config)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a directory.")
    if not resume and out.exists() and any(out.iterdir()):
        raise UserError(f"The directory {out} is not empty; add --resume to go on with it or give another --out.")
    summaries: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        observer.notice(f"{config.method}, seed {config.seed}")
        begun = resume and (out / name / "config.toml").exists()
        summaries[name] = simulate(
            config,
            out / name,
            resume=begun,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            observer=observer,
        )
        write_report(out / name)
    comparison = _comparison(configs, summaries, methods, seeds)
    directory = RunDirectory(out)
    directory.write_json("comparison.json", comparison)
    comparison_figure(comparison).savefig(out / "comparison.png", dpi=150)
    return comparison


def _own(settings: dict[str, Any], method: str, methods: list[str]) -> dict[str, Any]:
    """The method with those of the given options that it has.

    Raises:
        UserError: no method of the comparison has an option.
    """
    given = settings.get("method_options", {})
    fields = {name: load_method(name).options.model_fields for name in methods}
    known = sorted({key for options in fields.values() for key in options})
    for key in given:
        if key not in known:
            raise unknown("configuration key or option of these methods", key, known)
    return {"method": method, "method_options": {key: given[key] for key in given if key in fields[method]}}


def _comparison(
    configs: dict[str, RunConfig], summaries: dict[str, dict[str, Any]], methods: list[str], seeds: list[int]
) -> dict[str, Any]:
    first = next(iter(configs.values()))
    entries = []
    for method in methods:
        runs = [summaries[f"{method}-seed{seed}"] for seed in seeds]
        flat = [_flat(run["metrics"]) for run in runs]
        values = {key: [metrics[key] for metrics in flat] for key in flat[0]}
        entries.append(
            {
                "method": method,
                "metrics": {
                    key: {"mean": float(np.mean(v)), "std": float(np.std(v)), "values": v} for key, v in values.items()
                },
                "uplink_bytes_per_site_round": runs[0]["uplink_bytes_per_site_round"],
                "trainable_parameters": runs[0]["trainable_parameters"],
                "shared_parameters": runs[0]["shared_parameters"],
                "wall_seconds": float(np.mean([run["wall_seconds"] for run in runs])),
            }
        )
    shared = {key: getattr(first, key) for key in ("data", "protocol", "backbone", "sites", "rounds", "shots")}
    return {**shared, "seeds": seeds, "methods": entries, "runs": list(configs)}


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    per_domain = {f"domain:{name}": value for name, value in metrics.get("per_domain", {}).items()}
    return {**per_domain, **{key: value for key, value in metrics.items() if key != "per_domain"}}
