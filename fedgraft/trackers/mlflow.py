"""MLflow: the SQLite store `mlflow.db` in the directory of the command, by MLflow's own client.

A tracking server that the environment names is not used: nothing leaves this machine. `mlflow ui --backend-store-uri
sqlite:///OUT/mlflow.db` shows all runs.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping

from fedgraft.trackers.tracker import Record, TrackedRun, Tracker

STORE = "mlflow.db"
EXPERIMENT, DIRECTORY = "fedgraft", "fedgraft.directory"
_MOST, _LONGEST_PARAMETER = 100, 500


class _StoredRun:
    """Metrics by round, settings as parameters."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # the import of mlflow sets their levels
            logging.getLogger(name).setLevel(logging.WARNING)
        self._metric = Metric
        run.root.mkdir(parents=True, exist_ok=True)
        store = f"sqlite:///{(run.root / STORE).resolve()}"
        self._client = MlflowClient(tracking_uri=store, registry_uri=store)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(EXPERIMENT, (run.root / "mlflow-artifacts").resolve().as_uri())
        )
        where = str(run.directory.resolve())
        for old in self._client.search_runs([experiment]):
            if old.data.tags.get(DIRECTORY) == where:
                self._client.delete_run(old.info.run_id)
        self._id = self._client.create_run(experiment, run_name=run.name, tags={DIRECTORY: where}).info.run_id
        parameters = [Param(_name(key), _text(value)) for key, value in run.config.items()]
        for first in range(0, len(parameters), _MOST):
            self._client.log_batch(self._id, params=parameters[first : first + _MOST])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics."""
        now = int(1000 * time.time())
        metrics = [
            self._metric(_name(name), value, now, step) for name, value in values.items() if math.isfinite(value)
        ]
        for first in range(0, len(metrics), _MOST):
            self._client.log_batch(self._id, metrics=metrics[first : first + _MOST])

    def close(self, results: Mapping[str, float]) -> None:
        """Add the results, without which the run counts as stopped."""
        self.log(0, results)
        self._client.set_terminated(self._id, "FINISHED" if results else "KILLED")


def _name(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _text(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_PARAMETER]


def open_record(run: TrackedRun) -> Record:
    """A new run in the store; an earlier one of the same directory is marked as deleted."""
    return _StoredRun(run)


TRACKER = Tracker("mlflow", "a SQLite store beside the runs", open_record, library="mlflow", extra="mlflow")
