"""What a deployed round costs beyond training, beside stock Flower: `python -m benchmarks.deploy --sites 2`.

All on loopback with TLS and node keys, in one run: fedgraft as `fedgraft up` runs it, and two stock Flower apps (see
`benchmarks.stock`). For fedgraft: the seconds until all sites have greeted the server (certificates, SuperLink,
SuperNodes, workers with torch and backbone, image features), the median wall time of a round, from one completed round
to the next, less what a site trains, and the bytes that pass each site's socket in a round, both ways, with TLS and
polling.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.loopback import CLASS_NAMES, deployment
from benchmarks.stock import PARAMETERS, stock_round_seconds
from fedgraft.config.run_config import RunConfig
from fedgraft.runs.run_directory import RunDirectory


def fedgraft_rounds(root: Path, sites: int, rounds: int) -> dict[str, float]:
    """What fedgraft takes."""
    config = RunConfig(
        method="fedpgp", data="folder:own", protocol="own-data", sites=sites, rounds=rounds, answer_seconds=600.0,
        protocol_options={"class_names": CLASS_NAMES},
    )  # fmt: skip
    directory = RunDirectory(root / "run")
    began = time.monotonic()
    seen: dict[int, tuple[float, int]] = {}
    ready: list[float] = []
    with deployment(root, [f"site-{number}" for number in range(sites)]) as running:

        def look() -> None:
            now = time.monotonic()
            if not ready and (directory.path / "sites.json").exists():
                ready.append(now - began)
            seen.setdefault(directory.checkpoints.newest_round(), (now, sum(p.up + p.down for p in running.proxies)))

        running.run(config, directory.path, look)
    trained = [row["training_seconds"] / sites for row in directory.rows() if row["scope"] == "train"]
    walls = [seen[number + 1][0] - seen[number][0] for number in range(1, rounds)]
    wire = [(after - before) / sites for (_, before), (_, after) in pairwise([seen[n] for n in range(1, rounds + 1)])]
    return {
        "ready_seconds": ready[0],
        "round_seconds": statistics.median(walls),
        "training_seconds": statistics.median(trained),
        "overhead_seconds": statistics.median(walls) - statistics.median(trained),
        "wire_bytes_a_site_round": statistics.mean(wire),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("runs/deploy.json"))
    args = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        result["fedgraft"] = fedgraft_rounds(root / "fedgraft", args.sites, args.rounds)
        for app in ("typical", "empty"):
            seconds, wire = stock_round_seconds(root / app, app, args.sites, max(3, args.rounds // 2))
            result[f"stock Flower, {app} app"] = {"round_seconds": seconds, "wire_bytes_a_site_round": wire}
    for name, figures in result.items():
        print(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    limit = 1.5 * 4 * PARAMETERS + 64 * 1024
    print(f"1.5 times the shared parameters plus 64 KB: {limit:.0f} bytes")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"sites": args.sites, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
