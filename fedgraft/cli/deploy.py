"""`fedgraft run` and `fedgraft up`: a run on a deployed server, and a whole deployment on this machine."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.cli.fields import with_fields
from fedgraft.cli.settings import Config, Json, Set, Track, settings_from
from fedgraft.config.run_config import DEPLOYED_PROTOCOL, RunConfig

_POLL_SECONDS = 0.5
_LOCAL = {"sites": 3}


@with_fields(RunConfig, "Settings of the run", without=("data",), defaults={"protocol": DEPLOYED_PROTOCOL})
def run(
    settings: dict[str, Any],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    config: Config = None,
    set_: Set = None,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a federation on a running server; with the same --out again, it resumes."""
    from fedgraft.cli.following import RunFollower, print_sites
    from fedgraft.cli.printing import print_summary
    from fedgraft.cli.progress import tracked_progress
    from fedgraft.core.errors import UserError
    from fedgraft.core.logs import log_for_people
    from fedgraft.deployment.running_server import is_running
    from fedgraft.deployment.submitted import SubmittedRun
    from fedgraft.methods.plan import Plan
    from fedgraft.reports import write_report
    from fedgraft.runs.run_directory import RunDirectory
    from fedgraft.runs.server_folder import ServerFolder

    log_for_people()
    server = ServerFolder.open(folder)
    given = {"protocol": DEPLOYED_PROTOCOL, **settings, "data": "folder:own"}
    run_config = RunConfig.build(settings_from(config, given, set_))
    plan = Plan.of(run_config)  # a mistake is reported here, not by the server's process
    plan.require_backbone()
    directory = RunDirectory(out)
    directory.check_free(run_config, resume=directory.begun)
    if not is_running(server):
        raise UserError(f"No server is running on port {server.port}; start it: fedgraft server start {folder}")
    submitted = SubmittedRun(server, run_config, out)
    typer.echo(f"The run's log is {submitted.log}.", err=True)
    try:
        with tracked_progress(as_json, track, out) as observer:
            observer.on_run_start(out)
            follower = RunFollower(directory, observer, run_config.rounds if plan.method.trains else 0)
            try:
                while submitted.supervise():
                    follower.look(submitted.waits_for)
                    time.sleep(_POLL_SECONDS)
                follower.look()
            finally:
                observer.on_run_end(out)
    finally:
        submitted.stop()
    write_report(out)
    summary = directory.summary()
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, directory.report)
        print_sites(directory)


@with_fields(RunConfig, "Settings of the run", without=("data", "protocol"), defaults=_LOCAL)
def up(
    settings: dict[str, Any],
    data: Annotated[str, typer.Option(help="folder:PATH, class/image or domain/class/image.")],
    out: Annotated[Path, typer.Option(help="A directory for the server, the sites and the run.")] = Path("runs/up"),
    config: Config = None,
    set_: Set = None,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """A real deployment on this machine: SuperLink and SuperNodes with TLS and keys, each site with its own images."""
    from fedgraft.cli.printing import print_summary
    from fedgraft.cli.status import site_table
    from fedgraft.core.errors import UserError
    from fedgraft.data.sources.source import find_source
    from fedgraft.deployment.local import up as run
    from fedgraft.runs.run_directory import RunDirectory

    source, options = find_source(data)
    if not source.folder:
        raise UserError(f"Deployed sites have folders of images; give folder:PATH, not {data!r}.")
    given = settings_from(config, {**_LOCAL, **settings}, set_)
    images = Path(getattr(options, source.folder)).expanduser()
    with site_table(quiet=as_json) as watch, _tracked(track, out) as look:
        summary = run(images, given, out, lambda sites: (watch(sites), look())[0])
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, RunDirectory(out / "run").report)


@contextmanager
def _tracked(trackers: list[str] | None, out: Path) -> Iterator[Callable[[], None]]:
    """Something to call again and again while the deployment runs; it sends what is new to the trackers."""
    if not trackers:
        yield lambda: None
        return
    from fedgraft.cli.progress import StderrObserver
    from fedgraft.trackers.tracking import TrackingObserver

    observer = TrackingObserver(trackers, out, StderrObserver())
    observer.on_run_start(out / "run")
    try:
        yield observer.look
    finally:
        observer.on_run_end(out / "run")
