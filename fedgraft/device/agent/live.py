"""Predicting with whatever release a device's agent has switched to, and going back where a new one fails.

from fedgraft.device.agent.live import LivePredictor
predictor = LivePredictor("/var/lib/fedgraft-device")
predictor.predict("image.jpg")
"""

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.device.agent.device_folder import DeviceFolder, DeviceState
from fedgraft.device.agent.messages import one_line
from fedgraft.device.agent.tally import Tally, add_tally
from fedgraft.device.bundle import open_bundle
from fedgraft.device.errors import BundleError, DeviceError, ImageError
from fedgraft.device.predictor import ImageSource, Prediction, Predictor

STARTS = 5
"""A new release that has not predicted anything after so many starts has failed."""
_FLUSH_SECONDS, _FLUSH_PREDICTIONS = 5.0, 100


class LivePredictor:
    """Classifies images with a device's current release. Threads may share one.

    Args:
        folder: of the device's agent.
        threads: of onnxruntime, see `Predictor`.
        spinning: whether idle threads stay awake, see `Predictor`.

    Raises:
        DeviceError: the folder has no release yet, or none that works.
    """

    def __init__(self, folder: Path | str, threads: int | None = None, spinning: bool = True) -> None:
        self._folder = DeviceFolder(Path(folder))
        self._threads, self._spinning = threads, spinning
        self._lock = threading.RLock()
        self._stamp: tuple[int, int] | None = None
        self._release, self._proving, self._sharing = "", False, False
        self._predictor: Predictor | None = None
        self._positions: dict[str, int] = {}
        self._tallies: dict[str, Tally] = {}
        self._flushed = time.monotonic()
        with self._lock:
            self._reload()

    @property
    def release(self) -> str:
        """The id of the release that predicts."""
        return self._release

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the current release."""
        return self._current().labels

    def predict(self, image: ImageSource) -> Prediction:
        """Classify one image; where a new release fails, the last good one answers.

        Raises:
            ImageError: the image cannot be used.
            DeviceError: no release works.
        """
        while True:
            with self._lock:
                if self._stamp != self._stamped():
                    self._reload()
                predictor, release = self._current(), self._release
            began = time.perf_counter()
            try:
                answer, embedding = predictor.predict_embedded(image)
                if not math.isfinite(answer.probability):
                    raise BundleError("the probability of its prediction is not a number")
            except ImageError:
                raise
            except Exception as error:  # onnxruntime has no common error class
                with self._lock:
                    if not self._went_back(release, f"a prediction failed: {one_line(error)}"):
                        raise
                continue
            with self._lock:
                shared = embedding if self._sharing else None
                self._count(release, answer, 1000 * (time.perf_counter() - began), shared)
            return answer

    def flush(self) -> None:
        """Write what was counted, for the agent to report; `predict` does so every few seconds."""
        with self._lock:
            self._flushed = time.monotonic()
            for release in list(self._tallies):
                with suppress(DeviceError):  # on a full disk they wait
                    add_tally(self._folder, release, self._tallies[release])
                    del self._tallies[release]

    def close(self) -> None:
        """Write what was counted."""
        self.flush()

    def _current(self) -> Predictor:
        assert self._predictor is not None
        return self._predictor

    def _stamped(self) -> tuple[int, int] | None:
        try:
            found = (self._folder.path / "state.json").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _reload(self) -> None:
        """Open the release of the state, or the last good one where a new one cannot be opened."""
        self._stamp = self._stamped()
        try:
            state = self._folder.state()
        except DeviceError:
            if self._predictor is None:
                raise
            return  # what was opened before goes on
        self._sharing = state.share_embeddings
        while state.current != self._release or self._predictor is None:
            if not state.current:
                raise DeviceError(f"The device in {self._folder.path} has no release yet; its agent has to fetch one.")
            self.flush()
            following = self._opened(state)
            if following is None:
                return
            state = following
        self._proving = state.proving > 0

    def _opened(self, state: DeviceState) -> DeviceState | None:
        """None where a release predicts now; otherwise the state after the one that cannot be opened."""
        if state.proving and not self._may_start(state.current):
            return self._left(state, f"it did not predict anything in {STARTS} starts")
        try:
            predictor = opened_release(self._folder, state, self._threads, self._spinning)
        except DeviceError as error:
            if state.good not in ("", state.current):
                return self._left(state, one_line(error))
            if self._predictor is None:
                raise
            return None  # what was opened before goes on
        self._predictor, self._release, self._proving = predictor, state.current, state.proving > 0
        self._positions = {label: position for position, label in enumerate(predictor.labels)}
        return None

    def _may_start(self, release: str) -> bool:
        try:
            return self._folder.begin(release, STARTS)
        except DeviceError:  # a full disk is no fault of the release
            return True

    def _left(self, state: DeviceState, reason: str) -> DeviceState:
        """The state after its current release was given up; on a full disk only this program knows of it."""
        self._predictor = None
        try:
            return self._folder.refuse(state.current, reason)
        except DeviceError:
            return replace(state, current=state.good, good="", proving=0)

    def _went_back(self, release: str, reason: str) -> bool:
        """Whether a release on trial was left for the last good one, or has been left already."""
        if release != self._release:
            return True
        self._tally_of(release).failed += 1
        self.flush()
        state = self._folder.state()
        if state.current != release:
            self._reload()
            return self._release != release
        if not state.proving or not state.good:
            return False
        following: DeviceState | None = self._left(state, reason)
        while following is not None:
            if not following.current:
                raise DeviceError(f"No release in {self._folder.path} works; the last one failed: {reason}.")
            following = self._opened(following)
        return True

    def _count(
        self, release: str, answer: Prediction, milliseconds: float, embedding: NDArray[np.float32] | None
    ) -> None:
        if release != self._release:
            return
        self._tally_of(release).add(answer, self._positions[answer.label], milliseconds, embedding)
        if self._proving:
            with suppress(DeviceError):
                self._folder.prove(release, 1)  # which changes the state: the next prediction looks at it again
        due = time.monotonic() - self._flushed > _FLUSH_SECONDS
        if due or self._tally_of(release).predictions >= _FLUSH_PREDICTIONS:
            self.flush()

    def _tally_of(self, release: str) -> Tally:
        return self._tallies.setdefault(release, Tally())


def opened_release(
    folder: DeviceFolder, state: DeviceState, threads: int | None = None, spinning: bool = True
) -> Predictor:
    """A predictor of the state's current release; raises DeviceError if it cannot be used.

    What it was signed by was checked when it was fetched; here the bytes are checked against their manifest again.
    """
    predictor = Predictor(open_bundle(folder.bundle(state.current)), threads=threads, spinning=spinning, remember=False)
    if (bank := folder.bank(state.current)) is not None:
        predictor.swap_classes(bank)
    return predictor
