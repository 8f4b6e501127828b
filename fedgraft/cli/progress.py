"""Progress for people: bars on a terminal, plain lines otherwise, nothing with --json."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich import progress as rich_progress
from rich.console import Console
from rich.progress import Progress, TaskID

from fedgraft.core.observer import Observer, Observers


@contextmanager
def progress(quiet: bool) -> Iterator[Observer]:
    """An observer for the command's output."""
    if quiet:
        yield Observer()
    elif sys.stdout.isatty():
        with _bars() as bars:
            yield BarObserver(bars)
    else:
        yield LineObserver()


@contextmanager
def tracked_progress(quiet: bool, trackers: Sequence[str] | None, root: Path) -> Iterator[Observer]:
    """`progress`, and the trackers; with --json, a tracker's failure is told on the standard error.

    Raises:
        UserError: there is no such tracker, or its library is not installed.
    """
    with progress(quiet) as shown:
        if not trackers:
            yield shown
            return
        from fedgraft.trackers.tracking import TrackingObserver

        yield Observers([shown, TrackingObserver(trackers, root, StderrObserver() if quiet else shown)])


class StderrObserver(Observer):
    """Notices alone, where standard output is for programs."""

    def on_notice(self, sentence: str) -> None:
        """Print the notice."""
        typer.echo(sentence, err=True)


def _bars() -> Progress:
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
    )
    return Progress(*columns, rich_progress.TimeElapsedColumn(), rich_progress.TimeRemainingColumn(), console=Console())


class BarObserver(Observer):
    """A bar for the images and one for the rounds of each fold."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._fill: TaskID | None = None
        self._rounds: TaskID | None = None
        self._label = "rounds"

    def on_images(self, done: int, total: int) -> None:
        """Advance the bar of images."""
        if self._fill is None:
            self._fill = self._bars.add_task("encoding images", total=total)
        self._bars.update(self._fill, completed=done, total=total)
        if done == total:
            self._fill = None

    def on_notice(self, sentence: str) -> None:
        """Print above the bars."""
        self._bars.console.print(sentence, markup=False)

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """Start a bar of rounds."""
        self._label = _fold_label(name, number, count)
        self._rounds = None

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Advance the bar of rounds."""
        if self._rounds is None:
            self._rounds = self._bars.add_task(self._label, total=rounds or 1)
        figures = "  ".join(_figure(name, value) for name, value in metrics.items())
        self._bars.update(
            self._rounds, completed=server_round if rounds else 1, description=f"{self._label}  {figures}"
        )

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """Name the site above the bars."""
        self._bars.console.print(_left_out(server_round, site, reason), markup=False)


class LineObserver(Observer):
    """One plain line for each event, flushed."""

    def on_images(self, done: int, total: int) -> None:
        """Print a line at every tenth."""
        if done == total or done * 10 // total != max(0, done - 128) * 10 // total:
            _line(f"encoding images: {done}/{total}")

    def on_notice(self, sentence: str) -> None:
        """Print the notice."""
        _line(sentence)

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """Print a line if there are several folds."""
        if count > 1:
            _line(_fold_label(name, number, count))

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Print a line per round."""
        _line(f"round {server_round}/{rounds}  " + "  ".join(_figure(name, value) for name, value in metrics.items()))

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """Print a line."""
        _line(_left_out(server_round, site, reason))


def _fold_label(name: str | None, number: int, count: int) -> str:
    return "rounds" if name is None else f"left out: {name} ({number + 1} of {count})"


def _figure(name: str, value: float) -> str:
    return f"{name} {value:.3f}" if name == "loss" else f"{name} {value:.1f} %"


def _left_out(server_round: int, site: int, reason: str) -> str:
    return f"round {server_round}: site {site} is left out: {reason}"


def _line(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()
