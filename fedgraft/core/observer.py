"""Progress callbacks, for progress bars, plain lines, or nothing."""

from collections.abc import Sequence
from pathlib import Path


class Observer:
    """Progress callbacks; each may be overridden, and does nothing by default."""

    def on_run_start(self, directory: Path) -> None:
        """A run begins or is resumed; its configuration is in its directory."""

    def on_run_end(self, directory: Path) -> None:
        """A run has finished, or was stopped."""

    def on_images(self, done: int, total: int) -> None:
        """Images have been encoded."""

    def on_notice(self, sentence: str) -> None:
        """Something that the user should know."""

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """A federation begins; there are several if domains are left out one by one."""

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """A round was checkpointed and evaluated: accuracies in percent by scope, and the training loss."""

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """A site's answer does not count."""


class Observers(Observer):
    """Several observers, told in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_run_start(self, directory: Path) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_run_start(directory)

    def on_run_end(self, directory: Path) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_run_end(directory)

    def on_images(self, done: int, total: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_images(done, total)

    def on_notice(self, sentence: str) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_notice(sentence)

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_fold_start(name, number, count)

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_round_end(server_round, rounds, metrics)

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_site_left_out(server_round, site, reason)
