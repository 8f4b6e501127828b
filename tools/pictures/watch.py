"""Pictures of `fedgraft watch`: a comparison over two seeds on a desk, its sites in the dark, a run on a phone."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from fedgraft.watch.app import application
from fedgraft.watch.found import open_source
from tools.pictures.browser import browser, shoot

COMPARE = (
    "compare", "--methods", "zeroshot,local,promptfl,fedpgp", "--data", "digits", "--protocol", "base-to-novel",
    "--sites", "10", "--rounds", "12", "--shots", "16", "--seeds", "0,1,2",
)  # fmt: skip
_READY = "document.querySelector('#site-table tbody tr')"


def make(work: Path, out: Path) -> list[Path]:
    """Run the comparison, unless it is there, and take the pictures."""
    runs = work / "digits"
    if not (runs / "comparison.json").is_file():
        command = [
            sys.executable,
            "-m",
            "fedgraft",
            *COMPARE,
            "--out",
            str(runs),
            *(["--resume"] if runs.exists() else []),
        ]
        subprocess.run(command, check=True)
    with browser() as driver, served(runs) as all_runs, served(runs / "fedpgp-seed0") as one_run:
        return [
            shoot(driver, all_runs, out / "watch-comparison.webp", width=1240, height=822, ready=_READY),
            shoot(
                driver,
                all_runs,
                out / "watch-sites.webp",
                width=1240,
                ready=_READY,
                element="#sites-section",
                dark=True,
            ),
            shoot(driver, one_run, out / "watch-phone.webp", width=390, height=1500, ready=_READY, dark=True),
        ]


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of the page of a directory."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    app = application(open_source(path), ended=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
