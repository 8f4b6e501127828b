"""Weights & Biases, offline: a run in `RUN/wandb`, by its own library. Nothing is sent, unless by `wandb sync`."""

import os
import shutil
from collections.abc import Mapping
from typing import Any

from fedgraft.trackers.tracker import Record, TrackedRun, Tracker

FOLDER, PROJECT = "wandb", "fedgraft"


class _OfflineRun:
    """History by round, settings as configuration, results as summary."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        shutil.rmtree(run.directory / FOLDER, ignore_errors=True)
        settings = wandb.Settings(
            mode="offline", silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True,
            x_disable_meta=True, disable_job_creation=True,
        )  # fmt: skip
        self._run: Any = wandb.init(
            project=PROJECT,
            name=run.name,
            group=run.root.resolve().name,
            dir=str(run.directory),
            config=dict(run.config),
            settings=settings,
            reinit="create_new",
        )
        self._run.define_metric("*", step_metric="round")  # rounds start again with each fold, wandb's own steps never

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line of history."""
        self._run.log({"round": step, **values})

    def close(self, results: Mapping[str, float]) -> None:
        """Add the results, without which the run counts as failed."""
        self._run.summary.update(dict(results))
        self._run.finish(exit_code=0 if results else 1)


def open_record(run: TrackedRun) -> Record:
    """A new offline run in place of an earlier one."""
    return _OfflineRun(run)


TRACKER = Tracker("wandb", "an offline run in each run's directory", open_record, library="wandb", extra="wandb")
