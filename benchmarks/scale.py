"""Many simulated sites: `python -m benchmarks.scale --sites 1000` prints time, overhead a site and server memory.

The same run at a tenth of the sites goes first, each in a process of its own; memory a site is the difference of the
server's resident memory, the largest at the end of a round, over the difference of their sites. Overhead is the wall
time of a round less the workers' training time divided by the number of workers, a site: once of the training
exchange alone, once of the whole round with the evaluation of every site and the checkpoint.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedgraft import Resources, RunConfig, simulate
from fedgraft.core.observer import Observer


class RoundClock(Observer):
    """When each round ended, and the memory of the server's process then; the first is before any training."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.megabytes: list[float] = []

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """A time stamp and the resident memory."""
        self.ends.append(time.monotonic())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * resource.getpagesize() / 1e6)


def measure(sites: int, rounds: int, method: str, data: str, workers: int) -> dict[str, float]:
    """One run in this process."""
    config = RunConfig.build(
        {
            "method": method,
            "data": data,
            "protocol": "dirichlet",
            "protocol_options": {"partition": "iid"},
            "sites": sites,
            "rounds": rounds,
            "shots": 0,
        }
    )
    clock = RoundClock()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        summary = simulate(config, Path(folder) / "run", resources=Resources(workers), observer=clock)
        wall = time.monotonic() - began
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [row for row in map(json.loads, lines) if row["scope"] == "train"]
    walls = [after - before for before, after in zip(clock.ends[:-1], clock.ends[1:], strict=True)]
    busy = [row["training_seconds"] / workers for row in trained]
    beyond = [(row["seconds"] - work) / sites for row, work in zip(trained, busy, strict=True)]
    whole = [(round_wall - work) / sites for round_wall, work in zip(walls, busy, strict=True)]
    return {
        "sites": sites,
        "rounds": rounds,
        "wall_seconds": wall,
        "round_seconds": statistics.median(walls),
        "training_ms_per_site_round": 1e3 * statistics.median(busy) / sites,
        "overhead_ms_per_site_round": 1e3 * statistics.median(beyond),
        "overhead_with_evaluation_ms_per_site_round": 1e3 * statistics.median(whole),
        "server_mb": max(clock.megabytes),
        "accuracy": summary["metrics"]["accuracy"],
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--method", default="fedpgp")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("runs/scale.json"))
    parser.add_argument("--one", action="store_true", help="one run in this process, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.sites, args.rounds, args.method, args.data, args.workers)))
        return
    results = []
    for sites in (max(2, args.sites // 10), args.sites):
        options = {
            "sites": sites,
            "rounds": args.rounds,
            "method": args.method,
            "data": args.data,
            "workers": args.workers,
        }
        command = [sys.executable, "-m", "benchmarks.scale", "--one"]
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print("  ".join(f"{name} {value:.4g}" for name, value in results[-1].items()), flush=True)
    few, many = results
    grown = 1e3 * (many["server_mb"] - few["server_mb"]) / (many["sites"] - few["sites"])
    print(f"server memory a site {grown:.1f} KB")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"runs": results, "server_kb_per_site": grown}, indent=2) + "\n")


if __name__ == "__main__":
    main()
