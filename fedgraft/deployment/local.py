"""A complete deployment on this machine: a server and sites over loopback, with TLS and keys as anywhere else.

OUT/images/NAME/   links to each site's share of the images
OUT/server/        the server's folder
OUT/sites/NAME/    the sites' folders
OUT/run/           the run directory
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.config.run_config import DEPLOYED_PROTOCOL, RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.files import free_port, write_bytes
from fedgraft.core.randomness import generator
from fedgraft.data.results import is_evaluation
from fedgraft.data.sources.folder_layout import list_images
from fedgraft.data.sources.labelled_files import ImageFile, readable
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.methods.plan import Plan
from fedgraft.reports import write_report
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class SiteStatus:
    """What can be observed of a site."""

    name: str
    pids: list[int]
    images: int
    rounds: int
    accuracy: float | None


Watch = Callable[[list[SiteStatus]], None]


def up(images: Path, settings: dict[str, Any], out: Path, watch: Watch = lambda sites: None) -> dict[str, Any]:
    """Split a folder of images among sites, start a server and the sites, run, stop everything, return the summary.

    With domains, each site has one, and domains beyond the number of sites are left out; otherwise, the images of each
    class are dealt to the sites in turn.

    Args:
        settings: keys of `RunConfig` except data, protocol and its options.
        out: a new directory, or that of a run to resume.
        watch: called with the status of all sites about twice a second.

    Raises:
        UserError: there is a mistake in the settings or the images.
        RunFailed: the run could not continue.
    """
    files = list_images(images)
    config = RunConfig.build(
        {
            "answer_seconds": 600.0,
            **settings,
            "data": f"folder:{images.absolute()}",
            "protocol": DEPLOYED_PROTOCOL,
            "protocol_options": {"class_names": sorted({readable(file.label) for file in files})},
        }
    )
    Plan.of(config).require_backbone()
    parts = split_images(files, config.sites, config.seed)
    directory = RunDirectory(out / "run")
    directory.check_free(config, resume=directory.begun)
    folders = [_site(out, name, part, config.backbone) for name, part in parts.items()]
    server_folder = _server(out / "server")

    def site(folder: SiteFolder) -> RunningSite:
        return RunningSite(folder, f"127.0.0.1:{server_folder.port}", server_folder.authority)

    with started(server_folder, folders, site) as (server, running):
        _run(server, running, config, out / "run", watch)
    return directory.summary()


def admit_here(server: ServerFolder, site: SiteFolder) -> None:
    """Admit a site of this machine and put its certificate into its folder; errors as in `ServerFolder.admit`."""
    write_bytes(site.certificate, server.certificate_of(server.admit(site.public_key)).read_bytes())


@contextmanager
def started(
    server_folder: ServerFolder, folders: Sequence[SiteFolder], make_site: Callable[[SiteFolder], RunningSite]
) -> Iterator[tuple[RunningServer, list[RunningSite]]]:
    """A server and sites that it admits, running until the end of the block."""
    for folder in folders:
        admit_here(server_folder, folder)
    with ExitStack() as stack:
        server = RunningServer(server_folder)
        stack.callback(server.stop)
        server.start()
        sites = [make_site(folder) for folder in folders]
        for site in sites:
            stack.callback(site.stop)
            site.start()
        yield server, sites


def split_images(files: list[ImageFile], sites: int, seed: int) -> dict[str, list[ImageFile]]:
    """The images of each site by its name; raises UserError if there are too few."""
    domains = sorted({file.domain for file in files})
    if len(domains) > 1:
        if sites > len(domains):
            raise UserError(
                f"There are only {len(domains)} domains for {sites} sites; use at most {len(domains)} sites."
            )
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


def _run(server: RunningServer, sites: list[RunningSite], config: RunConfig, out: Path, watch: Watch) -> None:
    run = SubmittedRun(server.folder, config, out)
    try:
        while run.supervise():
            server.supervise()
            for site in sites:
                site.supervise()
            watch(site_statuses(sites, out))
            time.sleep(_POLL_SECONDS)
        watch(site_statuses(sites, out))
    finally:
        run.stop()
    write_report(out)


def site_statuses(sites: list[RunningSite], out: Path) -> list[SiteStatus]:
    """The status of each site, from the run directory and the processes."""
    known = RunDirectory(out).read_json("sites.json") or {}
    rows = RunDirectory(out).rows()
    statuses = []
    for site in sites:
        name = site.folder.settings.name
        number = str(known.get(name, {}).get("number", ""))
        trained = [row for row in rows if row["scope"] == "train" and int(number or -1) in row["sites"]]
        measured = [row["sites"][number] for row in rows if is_evaluation(row) and number in row["sites"]]
        images = int(sum(known.get(name, {}).get("images", {}).values()))
        statuses.append(SiteStatus(name, site.pids, images, len(trained), measured[-1] if measured else None))
    return statuses


def _server(path: Path) -> ServerFolder:
    if (path / "server.toml").exists():
        return ServerFolder.open(path)
    return ServerFolder.create(path, ["localhost", "127.0.0.1"], free_port())


def _site(out: Path, name: str, files: list[ImageFile], backbone: str) -> SiteFolder:
    images = out / "images" / name
    if (out / "sites" / name / "site.toml").exists():
        return SiteFolder.open(out / "sites" / name)
    for file in files:
        link = images / file.split / file.label / f"{file.domain}-{file.path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.path.absolute())
    (out / "sites").mkdir(parents=True, exist_ok=True)
    return SiteFolder.create(out / "sites" / name, name, images, backbone)
