"""Seeded schedules of faults against real deployments: `python -m benchmarks.faults --schedules 100`.

Each schedule has a server and two to four sites of its own on loopback, with TLS and node keys, each site behind a
proxy. During a run of two or three rounds processes are killed or stopped, connections are dropped, updates are bad,
sites join, leave and are revoked, keys and certificates rotate, a second run waits in the queue, or sites drop out of
secure aggregation. It must end with the metrics, the shared parameters and the personal states of a reference in one
process, in which the same sites take part in the same rounds and nothing else happens. After it no process and no file
in the temporary folder may be left.

A schedule is drawn from its seed. Finished seeds stand in the log and are not played again, so the same command goes on
where it was stopped. The folder of a schedule that does not end as it must is kept.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.fault_schedules import KINDS, drawn, seeds
from fedgraft.deployment.processes import end_with_parent

_MARK = "FEDGRAFT_SCHEDULE"
_LONGEST_SECONDS, _ENDING_SECONDS = 1200.0, 10.0


def played(seed: int) -> dict[str, Any]:
    """Play a schedule in a process with a temporary folder of its own, and look at what it leaves."""
    schedule, began = drawn(seed), time.monotonic()
    folder, mark = Path(tempfile.mkdtemp(prefix="faults-")), secrets.token_hex(8)
    (folder / "tmp").mkdir()
    environment = {
        **os.environ,
        _MARK: mark,
        "TMPDIR": str(folder / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),  # one folder for all processes of a user, made to stay
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.one_schedule", str(seed), str(folder)]
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LONGEST_SECONDS)
        process.kill()
        process.wait()
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except OSError:
        result = {"ended": f"FAILED: {_last_line(folder / 'log')}", "never_happened": []}
    processes, files = _processes_left(mark), _files_left(folder)
    if (processes or files) and result["ended"] == "right":
        result["ended"] = f"LEFT: {', '.join([*processes.values(), *files])}"
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if result["ended"] == "right":
        shutil.rmtree(folder)
    else:
        result["kept"] = str(folder)
    happens = [str(event) for event in schedule.events]
    seconds = round(time.monotonic() - began, 1)
    return {"seed": seed, "kind": schedule.kind, "events": happens, **result, "seconds": seconds}


def _processes_left(mark: str) -> dict[int, str]:
    """The command lines of the living processes that descend from a schedule, once they have had time to end."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (found := _marked(f"{_MARK}={mark}".encode())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _marked(mark: bytes) -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(path.name)] = command
    return found


def _files_left(folder: Path) -> list[str]:
    """What is left in the temporary folder, and in those that Flower's processes work in."""
    working = [folder / "tmp", *(folder / "work").glob("server/flwr/tmp"), *(folder / "work").glob("sites/*/flwr/tmp")]
    return sorted(str(path.relative_to(folder)) for each in working for path in each.rglob("*"))


def _last_line(log: Path) -> str:
    return next(iter(log.read_text(errors="replace").strip().splitlines()[-1:]), "it printed nothing")


def _line(result: dict[str, Any]) -> str:
    missed = f"  (never: {', '.join(result['never_happened'])})" if result["never_happened"] else ""
    kept = f"  (see {result['kept']})" if "kept" in result else ""
    happened = "; ".join(result["events"]) or "nothing else"
    return (
        f"{result['seed']:4d}  {result['kind']:<10}  {result['seconds']:6.1f} s  {result['ended']:<8}  "
        f"{happened}{missed}{kept}"
    )


def _known(log: Path) -> dict[int, dict[str, Any]]:
    """The results in the log by seed, without a line torn by a kill."""
    known = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(ValueError):
            result = json.loads(line)
            known[int(result["seed"])] = result
    return known


def _totals(results: list[dict[str, Any]]) -> None:
    """Print how many schedules of each kind ended how."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_kind[result["kind"]].append(result)
    for kind, own in by_kind.items():
        ended = Counter(result["ended"].partition(":")[0] for result in own)
        outcomes = ", ".join(f"{count} {how}" for how, count in sorted(ended.items()))
        print(f"{kind:<10}  {len(own):4d}  {outcomes}; {mean(result['seconds'] for result in own):.0f} s each")
    right = sum(result["ended"] == "right" for result in results)
    print(f"{len(results)} schedules: {right} right, {len(results) - right} not")


def main() -> None:
    """The command; its exit code is 1 if a schedule did not end as it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=KINDS, default="", help="schedules of one kind")
    parser.add_argument("--at-once", type=int, default=1, help="schedules that are played at the same time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no other schedule begins")
    parser.add_argument("--log", type=Path, default=Path("runs/faults.jsonl"), help="a JSON object a schedule")
    args = parser.parse_args()
    wanted, known = list(islice(seeds(args.only, args.seed), args.schedules)), _known(args.log)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes

    def played_in_time(seed: int) -> dict[str, Any] | None:
        return played(seed) if time.monotonic() < deadline else None

    with args.log.open("a") as log, ThreadPoolExecutor(args.at_once) as pool:
        waiting = [pool.submit(played_in_time, seed) for seed in wanted if seed not in known]
        for result in filter(None, (future.result() for future in as_completed(waiting))):
            known[result["seed"]] = result
            print(_line(result), flush=True)
            log.write(json.dumps(result) + "\n")
            log.flush()
    results = [known[seed] for seed in wanted if seed in known]
    _totals(results)
    sys.exit(any(result["ended"] != "right" for result in results))


if __name__ == "__main__":
    main()
