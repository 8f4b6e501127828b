"""Seeded schedules of faults against a real deployment: `python -m benchmarks.faults --schedules 30`.

A server and three sites run on loopback with TLS and node keys, each site behind a proxy. Every schedule is a run of
four rounds in which one to three things happen: a process is killed or stopped, connections are dropped, an update is
bad. It must end with the metrics, the shared parameters and the personal states of a reference in one process, in which
nothing happens but that the same bad updates are left out. At the end no process may be left.
"""

import argparse
import contextlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loopback import CLASS_NAMES, Deployment, deployment
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.testing.bad_updates import BAD_UPDATES, spoiled
from fedgraft.testing.in_process import FIRST_NODE, InProcessGrid, outcome, run_to_the_end

NAMES = ["east", "north", "south"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", protocol_options={"class_names": CLASS_NAMES},
    sites=3, rounds=4, answer_seconds=300.0, resend_seconds=20.0, shots=4, method_options={"n_ctx": 4, "rank": 2},
)  # fmt: skip
_AT_SERVER = ("SuperLink killed", "ServerApp killed")
_AT_SITE = (
    "worker killed", "worker hung", "SuperNode killed", "SuperNode stopped for 8 s", "SuperExec killed",
    "message process killed", "connections dropped", "network away for 10 s", "bad update",
)  # fmt: skip
_TASK_SECONDS = 12.0


@dataclass(frozen=True)
class Fault:
    """Something that happens in a round; `site` is a number, None where it happens to the server."""

    what: str
    round: int
    seconds: float
    site: int | None
    how: str = ""


def schedule(seed: int) -> list[Fault]:
    """One to three faults; at most one of them at the server, and no two bad updates."""
    rng = np.random.default_rng(seed)
    kinds = [str(kind) for kind in rng.permutation([*_AT_SERVER, *_AT_SITE])]
    faults: list[Fault] = []
    for what in kinds[: int(rng.integers(1, 4))]:
        site = None if what in _AT_SERVER else int(rng.integers(len(NAMES)))
        how = str(rng.choice(BAD_UPDATES)) if what == "bad update" else ""
        fault = Fault(what, int(rng.integers(1, CONFIG.rounds + 1)), round(float(rng.uniform(0, 4)), 1), site, how)
        if not (site is None and any(known.site is None for known in faults)):
            faults.append(fault)
    return faults


class Injector:
    """Lets faults happen when their round has come."""

    def __init__(self, running: Deployment, out: Path, faults: list[Fault]) -> None:
        self._running, self._directory = running, RunDirectory(out)
        self._waiting = list(faults)
        self._since = {0: time.monotonic()}
        self._stopped: list[tuple[int, float]] = []

    def __call__(self) -> None:
        """Look whether it is time."""
        now = time.monotonic()
        going = self._directory.checkpoints.newest_round() if (self._directory.path / "sites.json").exists() else -1
        self._since.setdefault(going, now)
        for fault in list(self._waiting):
            due = fault.what == "bad update" or (
                going >= fault.round - 1 and now - self._since.get(fault.round - 1, now) >= fault.seconds
            )
            if due and self._strike(fault, now):
                self._waiting.remove(fault)
        for pid, until in list(self._stopped):
            if now >= until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self._stopped.remove((pid, until))

    def _strike(self, fault: Fault, now: float) -> bool:
        """Let it happen; False where what it is to hit is not there at the moment."""
        if fault.site is None:
            word = "flower-superlink" if fault.what == "SuperLink killed" else "flwr-serverapp"
            return _kill(list(self._running.processes(word)))
        site, proxy = self._running.sites[fault.site], self._running.proxies[fault.site]
        if fault.what == "worker killed":
            return _kill([site.worker.pid])
        if fault.what == "worker hung":
            os.kill(site.worker.pid, signal.SIGSTOP)
        elif fault.what == "SuperNode killed":
            return _kill([site.supernode.pid])
        elif fault.what == "SuperNode stopped for 8 s":
            os.kill(site.supernode.pid, signal.SIGSTOP)
            self._stopped.append((site.supernode.pid, now + 8))
        elif fault.what == "SuperExec killed":
            return _kill([site.superexec.pid])
        elif fault.what == "message process killed":
            command = site.superexec.command
            address = command[command.index("--runtime-api-address") + 1]
            return _kill(list(self._running.processes("flwr-clientapp", address)))
        elif fault.what == "bad update":
            plan = {"round": fault.round, "how": fault.how}
            (site.folder.path / "bad-update.json").write_text(json.dumps(plan))
        else:
            proxy.drop(10.0 if fault.what == "network away for 10 s" else 0.0)
        return True

    @property
    def never_happened(self) -> list[str]:
        """What found nothing to hit before the run was over."""
        return [fault.what for fault in self._waiting]

    def clean_up(self) -> None:
        """What is stopped goes on; the next schedule's updates are good."""
        for pid, _ in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for site in self._running.sites:
            (site.folder.path / "bad-update.json").unlink(missing_ok=True)


def _kill(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def reference(root: Path, running: Deployment, bad: list[Fault]) -> dict[str, Any]:
    """What comes out in one process where only the bad updates happen."""
    sites = [SiteFolder.create(root / name, name, running.root / "images" / name) for name in NAMES]
    plans = {FIRST_NODE + fault.site: fault for fault in bad if fault.site is not None}
    rounds = dict.fromkeys(plans, 0)

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        if kind != "train" or node not in plans:
            return answer
        rounds[node] += 1
        return spoiled(answer, plans[node].how) if rounds[node] == plans[node].round else answer

    with InProcessGrid(sites, 0, {}, answering) as grid:
        run_to_the_end(CONFIG, root / "run", grid)
    return outcome(root / "run", sites)


def play(running: Deployment, folder: Path, faults: list[Fault]) -> dict[str, Any]:
    """One schedule: its faults, and whether all was as it must be."""
    wanted = reference(folder / "reference", running, [fault for fault in faults if fault.what == "bad update"])
    injector = Injector(running, folder / "run", faults)
    began = time.monotonic()
    ended = "right"
    try:
        running.run(CONFIG, folder / "run", injector)
        got = outcome(folder / "run", [site.folder for site in running.sites])
        wrong = [key for key in wanted if got[key] != wanted[key]]
        if wrong:
            ended = f"WRONG: {', '.join(wrong)}"
    except RunFailed as error:
        ended = f"FAILED: {error}"
    finally:
        injector.clean_up()
    return {
        "faults": [asdict(fault) for fault in faults],
        "never_happened": injector.never_happened,
        "ended": ended,
        "seconds": round(time.monotonic() - began, 1),
    }


def play_all(seeds: list[int], log: Path | None = None) -> list[dict[str, Any]]:
    """Every schedule on one deployment, then whether a process is left."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with deployment(root, NAMES, _TASK_SECONDS, "benchmarks.faulty_worker") as running:
            for seed in seeds:
                result = {"seed": seed, **play(running, root / f"schedule-{seed}", schedule(seed))}
                results.append(result)
                print(_line(result), flush=True)
                if log is not None:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    log.write_text(json.dumps(results, indent=2) + "\n")
        left = running.processes()
    if left:
        raise RunFailed(f"Processes are left: {left}")
    return results


def _line(result: dict[str, Any]) -> str:
    where = [
        f"{fault['what']}{' (' + fault['how'] + ')' if fault['how'] else ''} in round {fault['round']}"
        + ("" if fault["site"] is None else f" at {NAMES[fault['site']]}")
        for fault in result["faults"]
    ]
    missed = f"  (never: {', '.join(result['never_happened'])})" if result["never_happened"] else ""
    return f"{result['seed']:4d}  {result['seconds']:6.1f} s  {result['ended']:<8}  {'; '.join(where)}{missed}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first schedule")
    parser.add_argument("--json", type=Path, default=Path("runs/faults.json"))
    args = parser.parse_args()
    results = play_all(list(range(args.first, args.first + args.schedules)), args.json)
    ended = Counter(result["ended"].split(":")[0] for result in results)
    faults = Counter(fault["what"] for result in results for fault in result["faults"])
    for what, count in sorted(faults.items()):
        print(f"{count:4d}  {what}")
    print(f"{len(results)} schedules: {ended['right']} right, {len(results) - ended['right']} not; no process is left")


if __name__ == "__main__":
    main()
