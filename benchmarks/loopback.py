"""A deployment on loopback that outlives several runs: server, sites behind proxies, generated images."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.proxy import Proxy
from fedgraft.config.run_config import RunConfig
from fedgraft.core.files import free_port
from fedgraft.deployment.local import started
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

_COLOURS = {"blue circle": (20, 40, 220), "green square": (20, 200, 40), "red triangle": (220, 30, 20)}
CLASS_NAMES = sorted(_COLOURS)


def coloured_images(root: Path, count: int, seed: int = 0) -> None:
    """Noisy images of one colour a class."""
    rng = np.random.default_rng(seed)
    for name, colour in _COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.asarray(colour) + rng.normal(0, 90, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


@dataclass
class Deployment:
    """A running server and its running sites, each behind a proxy of its own."""

    server: RunningServer
    sites: list[RunningSite]
    proxies: list[Proxy]

    def run(self, config: RunConfig, out: Path, look: Callable[[], None] = lambda: None) -> None:
        """One run to its end; `look` is called a few times a second.

        Raises:
            RunFailed: the run ended before its last round.
        """
        run = SubmittedRun(self.server.folder, config, out)
        try:
            while run.supervise():
                self.server.supervise()
                for site in self.sites:
                    site.supervise()
                look()
                time.sleep(0.2)
        finally:
            run.stop()


@contextlib.contextmanager
def deployment(root: Path, names: list[str]) -> Iterator[Deployment]:
    """Server and sites up to the end of the block; each site has its own images in `root/images/NAME`."""
    folders = []
    for seed, name in enumerate(names):
        coloured_images(root / "images" / name, 10, seed)
        folders.append(SiteFolder.create(root / "sites" / name, name, root / "images" / name))
    server_folder = ServerFolder.create(root / "server", ["127.0.0.1"], free_port())
    proxies: list[Proxy] = []
    with ExitStack() as stack:

        def site(folder: SiteFolder) -> RunningSite:
            proxies.append(stack.enter_context(Proxy(server_folder.port)))
            return RunningSite(folder, f"127.0.0.1:{proxies[-1].port}", server_folder.authority)

        server, sites = stack.enter_context(started(server_folder, folders, site))
        yield Deployment(server, sites, proxies)
