"""The status of a deployment's sites: a table updated in place on a terminal, otherwise a line per round."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from fedgraft.deployment.local import SiteStatus

Watch = Callable[[list["SiteStatus"]], None]


@contextmanager
def site_table(quiet: bool) -> Iterator[Watch]:
    """A callback that shows the status of the sites, unless quiet."""
    if quiet:
        yield lambda sites: None
    elif sys.stdout.isatty():
        with Live(refresh_per_second=4) as live:
            yield lambda sites: live.update(_table(sites))
    else:
        yield _Lines().show


class _Lines:
    def __init__(self) -> None:
        self._shown: dict[str, tuple[int, float | None]] = {}

    def show(self, sites: list["SiteStatus"]) -> None:
        """Print a line for each site with a new round or accuracy."""
        for site in sites:
            state = (site.rounds, site.accuracy)
            if site.accuracy is not None and self._shown.get(site.name) != state:
                self._shown[site.name] = state
                print(f"{site.name}: {site.rounds} rounds trained, accuracy {site.accuracy:.1f} %", flush=True)


def _table(sites: list["SiteStatus"]) -> Table:
    table = Table("site", "images", "rounds trained", "accuracy", "worker", "SuperNode")
    for site in sites:
        accuracy = "" if site.accuracy is None else f"{site.accuracy:.1f} %"
        pids = [str(pid) for pid in site.pids]
        table.add_row(site.name, str(site.images or ""), str(site.rounds), accuracy, *pids)
    return table
