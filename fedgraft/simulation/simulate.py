"""Simulate a federation; `simulate(RunConfig(...), out)` is all that the command does."""

from pathlib import Path
from typing import Any

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.methods.plan import Plan
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.preparation import OpenExamples, prepare
from fedgraft.simulation.engine import Engine, Resources, open_engine


def simulate(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    resources: Resources | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run a federation with simulated sites and return what summary.json holds.

    Args:
        config: everything that determines the result.
        out: the run directory; it must be new unless `resume`.
        resume: continue from the last checkpoint of a run that was stopped.
        resources: what it may use; by default this machine's processes.
        observer: receives the progress callbacks.

    Raises:
        UserError: there is a mistake in the configuration, the data or the directory; nothing was written.
        RunFailed: the run could not continue.
    """
    with open_engine(resources or Resources()) as engine:
        return simulate_on(engine, config, Path(out), resume, observer or Observer())


def simulate_on(
    engine: Engine,
    config: RunConfig,
    out: Path,
    resume: bool,
    observer: Observer,
    open_examples: OpenExamples = Plan.open_examples,
) -> dict[str, Any]:
    """`simulate` on an existing engine, with examples that may already be open."""
    if Plan.of(config).protocol.deployed:
        raise UserError(f"The protocol {config.protocol!r} is for deployed sites, each with its own images.")
    coordinator = prepare(config, out, resume, observer, open_examples=open_examples)
    try:
        observer.on_run_start(out)
        if coordinator is not None:
            engine.run(coordinator)
    finally:
        if coordinator is not None:
            coordinator.directory.unlock()
        observer.on_run_end(out)
    return RunDirectory(out).summary()
