"""A whole deployment on this machine: a server and sites over loopback, with TLS and keys as anywhere else.

OUT/images/NAME/   links to each site's part of the images
OUT/server/        the server's folder
OUT/sites/NAME/    the sites' folders
OUT/run/           the run directory
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedgraft.client.folder import SiteFolder
from fedgraft.config import RunConfig
from fedgraft.data.folder import ImageFile, list_images, readable
from fedgraft.deployment.running import RunningServer, RunningSite, free_port, submit
from fedgraft.errors import RunFailed, UserError
from fedgraft.randomness import generator
from fedgraft.server.folder import ServerFolder
from fedgraft.server.report import write_report
from fedgraft.server.run_directory import RunDirectory

_POLL_SECONDS = 0.5
_log = logging.getLogger("fedgraft.deployment")


@dataclass(frozen=True)
class SiteStatus:
    """What is known of a site from outside."""

    name: str
    pids: list[int]
    images: int
    rounds: int
    accuracy: float | None


Watch = Callable[[list[SiteStatus]], None]


def up(images: Path, settings: dict[str, Any], out: Path, watch: Watch = lambda sites: None) -> dict[str, Any]:
    """Split a folder of images among sites, start a server and the sites, run, stop all of it.

    With domains each site has one, and domains beyond the number of sites are kept out; without, each class is dealt
    in turn.

    Args:
        settings: keys of `RunConfig` but data, protocol and class names.
        out: a new directory, or one to go on with.
        watch: is told of the sites about twice a second.

    Returns:
        What summary.json holds.

    Raises:
        UserError: a mistake in the settings or the images.
        RunFailed: the run could not go on.
    """
    files = list_images(images)
    config = RunConfig.build(
        {
            "answer_seconds": 600.0,
            **settings,
            "data": f"folder:{images.absolute()}",
            "protocol": "own-data",
            "class_names": sorted({readable(file.label) for file in files}),
        }
    )
    parts = split_images(files, config.sites, config.seed)
    RunDirectory(out / "run").check_free(config, resume=(out / "run" / "config.toml").exists())
    folders = [_site(out, name, part) for name, part in parts.items()]
    server_folder = _server(out / "server")
    for folder in folders:
        server_folder.admit(folder.public_key)
    with ExitStack() as stack:
        server = RunningServer(server_folder)
        stack.callback(server.stop)
        server.start()
        running = []
        for folder in folders:
            site = RunningSite(folder, f"127.0.0.1:{server_folder.port}", server_folder.authority)
            stack.callback(site.stop)
            site.start()
            running.append(site)
        _run(server_folder, running, config, out / "run", watch)
    return RunDirectory(out / "run").summary()


def split_images(files: list[ImageFile], sites: int, seed: int) -> dict[str, list[ImageFile]]:
    """The images of each site by its name.

    Raises:
        UserError: there are too few images.
    """
    domains = sorted({file.domain for file in files})
    if len(domains) > 1:
        if sites > len(domains):
            raise UserError(f"There are {len(domains)} domains for {sites} sites; give at most {len(domains)} sites.")
        return {domain: [file for file in files if file.domain == domain] for domain in domains[:sites]}
    parts: dict[str, list[ImageFile]] = {f"site-{number}": [] for number in range(sites)}
    for label in sorted({file.label for file in files}):
        own = [file for file in files if file.label == label]
        order = generator(seed, "split-images", label).permutation(len(own))
        for place, position in enumerate(order):
            parts[f"site-{place % sites}"].append(own[position])
    if empty := [name for name, part in parts.items() if not part]:
        raise UserError(f"{len(files)} images are too few for {sites} sites; {empty[0]} would have none.")
    return parts


def run_on(server: ServerFolder, config: RunConfig, out: Path) -> "SubmittedRun":
    """Hand a run to a running server."""
    settings = server.path / "app" / "settings.toml"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(tomli_w.dumps({"out": str(out.absolute()), "settings": config.model_dump_json()}))
    return SubmittedRun(server, settings, out)


class SubmittedRun:
    """A run that a SuperLink has taken."""

    def __init__(self, server: ServerFolder, settings: Path, out: Path) -> None:
        self._out = out
        self.log = server.path / "logs" / "run.log"
        with self.log.open("ab") as log:
            self._process = submit(server, settings, log)

    @property
    def ended(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Until the run has ended."""
        self._process.wait()

    def finish(self) -> None:
        """Write the report.

        Raises:
            RunFailed: the run ended before its last round, with the reason from its log.
        """
        if not (self._out / "summary.json").exists():
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if "Error" in line]
            lines = [line for line in lines if "UserError" in line or "RunFailed" in line] or lines
            reason = lines[-1].split("Error: ", 1)[-1].split("RunFailed: ", 1)[-1] if lines else "it says no reason"
            raise RunFailed(f"The run ended before its last round: {reason} (see {self.log}).")
        write_report(self._out)

    def stop(self) -> None:
        """End the process that follows the run's log."""
        self._process.terminate()
        self._process.wait()


def _run(server: ServerFolder, sites: list[RunningSite], config: RunConfig, out: Path, watch: Watch) -> None:
    run = run_on(server, config, out)
    try:
        while not run.ended:
            for site in sites:
                site.tend()
            watch(site_statuses(sites, out))
            time.sleep(_POLL_SECONDS)
        watch(site_statuses(sites, out))
    finally:
        run.stop()
    run.finish()


def site_statuses(sites: list[RunningSite], out: Path) -> list[SiteStatus]:
    """What the run directory and the processes say of each site."""
    known = RunDirectory(out).read_json("sites.json") or {}
    rows = RunDirectory(out).rows()
    statuses = []
    for site in sites:
        name = site.folder.settings.name
        number = str(known.get(name, {}).get("number", ""))
        trained = [row for row in rows if row["scope"] == "train" and int(number or -1) in row["sites"]]
        measured = [row["sites"][number] for row in rows if row["scope"] == "personal" and number in row["sites"]]
        images = int(sum(known.get(name, {}).get("images", {}).values()))
        statuses.append(SiteStatus(name, site.pids, images, len(trained), measured[-1] if measured else None))
    return statuses


def _server(path: Path) -> ServerFolder:
    if (path / "server.toml").exists():
        return ServerFolder.open(path)
    return ServerFolder.create(path, ["localhost", "127.0.0.1"], free_port())


def _site(out: Path, name: str, files: list[ImageFile]) -> SiteFolder:
    images = out / "images" / name
    if (out / "sites" / name / "site.toml").exists():
        return SiteFolder.open(out / "sites" / name)
    for file in files:
        link = images / file.label / f"{file.domain}-{file.path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.path.absolute())
    (out / "sites").mkdir(parents=True, exist_ok=True)
    return SiteFolder.create(out / "sites" / name, name, images)
