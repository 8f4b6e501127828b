"""One or several runs as the page shows them; each part of the JSON is made again only when its files have changed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import NAME_LENGTH, plain
from fedgraft.watch.processes import RUN, Load
from fedgraft.watch.run import WatchedRun
from fedgraft.watch.run_view import run_view
from fedgraft.watch.seeds import entries_view, labels
from fedgraft.watch.sites_view import sites_view

FORMAT = 1
"""Of /api/run; grows when a key changes its meaning."""

_KEPT_TEXTS = 12
"""Parts of the JSON that are kept besides one for each run: the sites of so many runs and scopes."""


class Source(Protocol):
    """What can be watched."""

    @property
    def revision(self) -> int:
        """Grows when `view` changes."""

    @property
    def load_revision(self) -> int:
        """Grows when `load` changes."""

    def refresh(self) -> None:
        """Look at the disk and the processes."""

    def knows(self, run: str | None) -> bool:
        """Whether there is a run of the name; None stands for any."""

    def view(self, run: str | None, scope: str | None) -> bytes:
        """All that the page shows, as JSON, with the sites of one run and the heat map of one scope."""

    def load(self) -> bytes:
        """What the processes take, as JSON."""


class Runs:
    """The runs in a directory.

    Args:
        kind: "run", "comparison" or "server".
        find: the directories of the runs by name.
        comparison: the content of comparison.json, if there is one.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        find: Callable[[], Mapping[str, Path]],
        comparison: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self.name, self.kind = plain(path.absolute().name, NAME_LENGTH), kind
        self.revision = 0
        self.runs: dict[str, WatchedRun] = {}
        self.processes = Load()
        self._find, self._comparison = find, comparison
        self._compared: dict[str, Any] | None = None
        self._problem = ""
        self._texts: dict[str, tuple[int, str]] = {}

    @property
    def load_revision(self) -> int:
        """Grows with each sample."""
        return self.processes.revision

    def refresh(self) -> None:
        """Look at the files of all runs and at the processes that are at work on them."""
        before = self._state()
        for name, path in self._find().items():
            if name not in self.runs:
                self.runs[name] = WatchedRun(path, name)
        for run in self.runs.values():
            run.refresh()
        try:
            self._compared, self._problem = self._comparison(), ""
        except UserError as error:
            self._problem = plain(str(error))
        if self._state() != before:
            self.revision += 1
        self.processes.sample(self.roots())

    def roots(self) -> dict[int, str]:
        """The processes at work, and what each is called."""
        return {run.worker: RUN for run in self.runs.values() if run.worker is not None}

    def knows(self, run: str | None) -> bool:
        """Whether there is a run of the name."""
        return run is None or run in self.runs

    def chosen(self, run: str | None = None) -> WatchedRun | None:
        """The run of a name, or else the one at work, or else the last."""
        runs = list(self.runs.values())
        working = next((each for each in runs if each.state == "running"), None)
        return self.runs.get(run or "") or working or next(reversed(runs), None)

    def view(self, run: str | None = None, scope: str | None = None) -> bytes:
        """All that the page shows, as JSON."""
        chosen = self.chosen(run)
        parts = {
            "runs": f"[{','.join(self._run_text(each) for each in self.runs.values())}]",
            "entries": self._kept("entries", self.revision, self._entries),
            "sites": "null" if chosen is None else self._sites_text(chosen, scope),
            "load": json.dumps(self.processes.view()),
        }
        head = json.dumps({"format": FORMAT, "kind": self.kind, "name": self.name, **self.head()}, allow_nan=False)
        return f"{head[:-1]},{','.join(f'{json.dumps(key)}:{text}' for key, text in parts.items())}}}".encode()

    def load(self) -> bytes:
        """What the processes take."""
        return json.dumps(self.processes.view()).encode()

    def head(self) -> dict[str, Any]:
        """What the page says first: state, progress over all runs that have begun, and what is wrong."""
        runs = list(self.runs.values())
        states = {run.state for run in runs}
        ended = self.kind == "run" or self._compared is not None
        order = ("running", "unknown", "waiting", "stopped", "finished")
        state = next((each for each in order if each in states), "waiting")
        return {
            "state": "stopped" if state == "finished" and not ended and self.kind == "comparison" else state,
            "problems": [text for text in (self._problem, *(run.problem for run in runs)) if text],
            "chosen": chosen.name if (chosen := self.chosen()) is not None else None,
            "seeds": len((self._compared or {}).get("seeds", [])) or None,
        }

    def known_sites(self) -> dict[str, dict[str, Any]]:
        """What is known of deployed sites beyond the run, by name."""
        return {}

    def _state(self) -> Sequence[object]:
        return [(name, run.revision) for name, run in self.runs.items()] + [(self._problem, self._compared is None)]

    def _entries(self) -> list[dict[str, Any]]:
        if self.kind != "comparison":
            return []
        return entries_view(list(self.runs.values()), labels(list(self.runs), self._compared))

    def _run_text(self, run: WatchedRun) -> str:
        return self._kept(f"run {run.name}", run.revision, lambda: run_view(run))

    def _sites_text(self, run: WatchedRun, scope: str | None) -> str:
        known = self.known_sites()
        if known:
            return json.dumps(sites_view(run, scope, known), allow_nan=False)
        return self._kept(f"sites {run.name} {scope}", run.revision, lambda: sites_view(run, scope))

    def _kept(self, key: str, revision: int, make: Callable[[], Any]) -> str:
        known = self._texts.pop(key, None)
        if known is None or known[0] != revision:
            known = revision, json.dumps(make(), allow_nan=False)
        self._texts[key] = known
        if len(self._texts) > len(self.runs) + _KEPT_TEXTS:  # that which was not asked for longest
            del self._texts[next(iter(self._texts))]
        return known[1]
