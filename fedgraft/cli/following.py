"""A run on a server as `fedgraft run` sees it: what its run directory says, while it goes on and at the end."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fedgraft.core.observer import Observer
from fedgraft.data.results import Row, is_evaluation
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.summary import unused_sentence


class RunFollower:
    """Reports rounds and left-out sites to an observer as they appear in a run directory.

    Args:
        rounds: how many the run has.
    """

    def __init__(self, directory: RunDirectory, observer: Observer, rounds: int) -> None:
        self._directory, self._observer, self._rounds = directory, observer, rounds
        self._told: set[tuple[Any, ...]] = set()
        self._waits_for = ""
        rows = directory.rows()
        self._told.update(_key(row) for row in rows if row["scope"] == "left_out")
        self._told.update((row["round"], row["unused"]) for row in rows if "unused" in row)
        self._told.update((number,) for number in sorted(_metrics(rows))[:-1])

    def look(self, waits_for: str = "") -> None:
        """Report what is new.

        Args:
            waits_for: why nothing happens at present.
        """
        if waits_for != self._waits_for and waits_for:
            self._observer.on_notice(waits_for)
        self._waits_for = waits_for
        rows = self._directory.rows()
        for row in rows:
            if row["scope"] == "left_out" and _key(row) not in self._told:
                self._told.add(_key(row))
                self._observer.on_site_left_out(row["round"], row["site"], row["reason"])
            if (reason := row.get("unused")) and (row["round"], reason) not in self._told:
                self._told.add((row["round"], reason))
                self._observer.on_notice(unused_sentence(row["round"], reason))
        for number, metrics in sorted(_metrics(rows).items()):
            if (number,) not in self._told:
                self._told.add((number,))
                self._observer.on_round_end(number, self._rounds, metrics)


def _metrics(rows: list[Row]) -> dict[int, dict[str, float]]:
    """Accuracy by scope of every evaluated round, and its training loss."""
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if is_evaluation(row):
            metrics[row["round"]][row["scope"]] = row["accuracy"]
    for row in rows:
        if row["scope"] == "train" and "loss" in row and row["round"] in metrics:
            metrics[row["round"]]["loss"] = row["loss"]
    return metrics


def _key(row: Row) -> tuple[Any, ...]:
    return row["round"], row["site"], row["reason"]


def print_sites(directory: RunDirectory) -> None:
    """Who took part in a deployed run, who was left out and why, and who never came."""
    known = directory.read_json("sites.json") or {}
    names = {entry["number"]: name for name, entry in known.items()}
    rows = directory.rows()
    trained = [row for row in rows if row["scope"] == "train"]
    table = Table("site", "number", "rounds trained", "rounds left out", "last reason")
    for number in range(directory.config().sites):
        left_out = [row for row in rows if row["scope"] == "left_out" and row["site"] == number]
        took_part = sum(number in row["sites"] for row in trained)
        reason = left_out[-1]["reason"] if left_out else ""
        name = names.get(number, "(never connected)")
        times = len({row["round"] for row in left_out})
        table.add_row(name, str(number), f"{took_part} of {len(trained)}", str(times or ""), reason)
    Console().print(table, markup=False)
