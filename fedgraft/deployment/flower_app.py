"""fedgraft as an ordinary Flower app, for `flwr run`: the same server and client as `fedgraft simulate`.

The app's run configuration has the keys of `RunConfig` and three of its own: `options`, options of method, protocol and
data source ("rank=4, mu=1.0"); `out`, the run directory; and `wait`, how many seconds to wait for missing SuperNodes.
`sites = 0` uses as many sites as the federation has SuperNodes.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.client.app import app as client_app
from fedgraft.config.notation import parse_assignments
from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import merged, sorted_into_tables
from fedgraft.core.errors import RunPaused, UserError, reason_of
from fedgraft.core.observer import Observer
from fedgraft.data.sources.source import find_source
from fedgraft.flower.internals import is_lost_server, take_replies_by_envelope
from fedgraft.flower.run_state import Ended, Outcome, RunState
from fedgraft.reports import write_report
from fedgraft.runs.run_directory import RunDirectory

__all__ = ["client_app", "server_app"]

server_app = ServerApp()

_log = logging.getLogger("flwr")
_DEFAULTS: dict[str, Any] = {"out": "~/fedgraft-runs/{run}", "wait": 10, "sites": 0, "options": ""}
_SETTLED_SECONDS = 1.0
"""Flower registers SuperNodes one by one; their number counts once it has been stable for this long."""
_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 60.0
"""A server process whose SuperLink was killed may hold the run directory for a moment."""


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation on Flower's grid, resuming the run if the run directory holds it unfinished."""
    if "settings" in context.run_config:
        _run_deployed(grid, context)
        return
    given = {**_DEFAULTS, **context.run_config}
    out = _run_directory(str(given.pop("out")), context.run_id)
    if not isinstance(wait := given.pop("wait"), int | float):
        raise UserError(f"wait must be a number of seconds, not {wait!r}.")
    config = _run_config(given)
    _run(grid, _with_sites(config, config.sites if given["sites"] else 0, grid, wait), out)


def _run_deployed(grid: Grid, context: Context) -> None:
    """Run what `fedgraft run` and `fedgraft up` submit, for sites with own data.

    The app's key `settings` holds JSON: the whole configuration, which submission it is, and the folder of the admitted
    sites.
    """
    given = json.loads(str(context.run_config["settings"]))
    out = _run_directory(str(context.run_config["out"]), context.run_id)
    with _recorded(RunDirectory(out), given["submission"]) as begun:
        config = RunConfig.build(given["config"])
        _run(grid, config, out, _LEAVE_SECONDS, begun, Path(given["admitted"]))


@contextmanager
def _recorded(directory: RunDirectory, submission: str) -> Iterator[Callable[[], None]]:
    """Record in ended.json how the run ends; the callback says that this process has the run directory."""
    state, holds = RunState(directory.path), False

    def end(outcome: Outcome, error: Exception | None = None) -> None:
        if holds or not directory.is_locked():
            reason, kind = (reason_of(error), type(error).__name__) if error else ("", "")
            state.end(Ended(outcome, submission, directory.checkpoints.newest_round(), reason, kind))

    def begun() -> None:
        nonlocal holds
        holds = True
        end(Outcome.RUNNING)

    try:
        yield begun
    except RunPaused as pause:
        _log.info("fedgraft: %s", pause)
        end(Outcome.PAUSED, pause)
    except Exception as error:
        end(Outcome.INTERRUPTED if is_lost_server(error) else Outcome.FAILED, error)
        raise
    else:
        end(Outcome.FINISHED)


def _run(
    grid: Grid,
    config: RunConfig,
    out: Path,
    lock_seconds: float = 0.0,
    begun: Callable[[], None] = lambda: None,
    admitted: Path | None = None,
) -> None:
    # Imported here because a ClientApp process imports this module for every message of a deployment.
    from fedgraft.runs.server_folder import admitted_key_files, admitted_names
    from fedgraft.runs.site_peers import public_keys_in
    from fedgraft.server.preparation import prepare

    _log.info("fedgraft: %s on %s with %d sites, into %s", config.method, config.data, config.sites, out)
    resume = (out / "config.toml").exists()
    coordinator = prepare(config, out, resume, _LogObserver(), lock_seconds)
    if coordinator is None:
        _log.info("fedgraft: the run in %s is finished; give another out for a new one", out)
    else:
        take_replies_by_envelope()
        begun()
        if admitted is not None:
            members = coordinator.members
            members.admitted = lambda: admitted_names(admitted)
            members.keys_of = lambda name: public_keys_in(admitted_key_files(admitted, name))
        coordinator.run(grid)
    _log.info("fedgraft: wrote %s", write_report(out))


def _run_directory(text: str, run_id: int) -> Path:
    """The run directory, with Flower's run ID for "{run}"; raises UserError for a relative path."""
    return _absolute("out", text.replace("{run}", str(run_id)))


def _absolute(key: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise UserError(
            f"{key} has the relative path {text!r}, but Flower's processes do not run in the folder of your command; "
            f'give an absolute path, one that begins with ~, or "$PWD/{text.removeprefix("./")}".'
        )
    return path


def _run_config(given: Mapping[str, Any]) -> RunConfig:
    """The validated configuration, with one site if the app's configuration leaves the number open.

    Raises:
        UserError: there is an unknown key, an invalid value, or a relative path.
    """
    options = parse_assignments(str(given["options"]), "options")
    for key in options.keys() & RunConfig.model_fields.keys():
        raise UserError(f"{key!r} is not an option; give it as a key of its own, next to options.")
    plain = {key: value for key, value in given.items() if key != "options"}
    config = RunConfig.build(sorted_into_tables(merged({**plain, "sites": given["sites"] or 1}, options)))
    source, parsed = find_source(config.data, config.data_options)
    if source.local:
        _absolute("data", str(getattr(parsed, source.local)))
    if config.backbone.startswith("."):
        _absolute("backbone", config.backbone)
    return config


def _with_sites(config: RunConfig, wanted: int, grid: Grid, wait: float) -> RunConfig:
    """The configuration with as many sites as there are SuperNodes.

    Raises:
        UserError: there are none, or not as many as wanted.
    """
    count = _count_supernodes(grid, wanted, wait)
    simulated = f'In a simulation add --federation-config "num-supernodes={wanted}"; in a deployment'
    either = "sites=0 uses as many sites as there are SuperNodes."
    if count == 0:
        raise UserError(f"No SuperNode connected within {wait:g} seconds; start them first, or give a longer wait.")
    if count < wanted:
        raise UserError(
            f"The run has {wanted} sites, but the federation has only {count} SuperNodes. "
            f"{simulated} start the others first, or give a longer wait. {either}"
        )
    if count > wanted > 0:
        raise UserError(
            f"The federation has {count} SuperNodes, more than the {wanted} sites of the run. "
            f"{simulated} stop the others. {either}"
        )
    return config.model_copy(update={"sites": count})


def _count_supernodes(grid: Grid, wanted: int, wait: float) -> int:
    """The number of SuperNodes, once it is stable and sufficient, or after the wait."""
    began = changed = time.monotonic()
    seen = -1
    while True:
        count, now = len(list(grid.get_node_ids())), time.monotonic()
        if count != seen:
            seen, changed = count, now
        enough = count >= max(wanted, 1) and now - changed >= _SETTLED_SECONDS
        if enough or now - began >= wait:
            return count
        time.sleep(_POLL_SECONDS)


class _LogObserver(Observer):
    """Lines in Flower's log, which `flwr run --stream` and `flwr log` show."""

    def on_images(self, done: int, total: int) -> None:
        """Log a line at the end."""
        if done == total:
            _log.info("fedgraft: encoded %d images", total)

    def on_notice(self, sentence: str) -> None:
        """Log the notice."""
        _log.info("fedgraft: %s", sentence)

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """Log a line if there are several folds."""
        if name is not None:
            _log.info("fedgraft: left out: %s (%d of %d)", name, number + 1, count)

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Log a line per round."""
        figures = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        _log.info("fedgraft: round %d/%d  %s", server_round, rounds, figures)

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """Log a warning."""
        _log.warning("fedgraft: round %d: site %d is left out: %s", server_round, site, reason)
