"""TensorBoard: an event file in `RUN/tensorboard`, by its own writer. `tensorboard --logdir OUT` shows all runs."""

import json
import time
from collections.abc import Mapping
from typing import Any

from fedgraft.trackers.tracker import Record, TrackedRun, Tracker

FOLDER = "tensorboard"


class _EventFile:
    """Scalars by round; settings and results on the page HParams."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        folder = run.directory / FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer, self._last = EventFileWriter(str(folder)), 0
        self._add(0, summary_v2.hparams_pb(_plain(run.config), trial_id=run.name))
        self._writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        self._last = max(self._last, step)
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, self._summary(value=scalars))
        self._writer.flush()

    def close(self, results: Mapping[str, float]) -> None:
        """Add the results at the last round."""
        if results:
            self.log(self._last, results)
        self._writer.close()

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))


def _plain(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Settings as HParams takes them."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in config.items()
    }


def open_record(run: TrackedRun) -> Record:
    """A new event file in place of an earlier one."""
    return _EventFile(run)


TRACKER = Tracker(
    "tensorboard", "an event file in each run's directory", open_record, library="tensorboard", extra="tensorboard"
)
