"""What a deployed round costs beyond training: `python -m benchmarks.deploy --sites 2` on loopback, with TLS and keys.

Starts a server and sites as `fedgraft up` does, on generated images of three colours, and reports the seconds until
the first evaluation has come in (certificates, SuperLink, SuperNodes, workers with torch and backbone, image features),
and the median wall time of a round, from one evaluation to the next, less what the slowest site trains. The
clock looks twice a second.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.deployment.local import SiteStatus, up

_COLOURS = {"blue circle": (20, 40, 220), "green square": (20, 200, 40), "red triangle": (220, 30, 20)}


class Clock:
    """When the evaluation of each round was first seen."""

    def __init__(self, out: Path) -> None:
        self.seen: dict[int, float] = {}
        self._rows = out / "run" / "metrics.jsonl"

    def __call__(self, sites: list[SiteStatus]) -> None:
        """Look at the rows."""
        if self._rows.exists():
            for row in map(json.loads, self._rows.read_text().splitlines()):
                if row["scope"] == "personal":
                    self.seen.setdefault(row["round"], time.monotonic())


def coloured_images(root: Path, count: int) -> None:
    """Noisy images of one colour a class."""
    rng = np.random.default_rng(0)
    for name, colour in _COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.asarray(colour) + rng.normal(0, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("runs/deploy.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "up"
        coloured_images(Path(folder) / "images", 10 * args.sites)
        clock = Clock(out)
        began = time.monotonic()
        summary = up(Path(folder) / "images", {"sites": args.sites, "rounds": args.rounds}, out, clock)
        rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    times = [clock.seen[number] for number in range(args.rounds + 1)]
    walls = [after - before for before, after in pairwise(times)]
    trained = [row["training_seconds"] for row in rows if row["scope"] == "train"]
    result = {
        "sites": args.sites,
        "first_evaluation_seconds": times[0] - began,
        "round_seconds": statistics.median(walls),
        "training_seconds": statistics.median(trained) / args.sites,
        "exchange_seconds": statistics.median(row["seconds"] for row in rows if row["scope"] == "train"),
        "overhead_seconds": statistics.median(walls) - statistics.median(trained) / args.sites,
        "uplink_bytes": summary["uplink_bytes_per_site_round"],
        "downlink_bytes": summary["downlink_bytes_per_site_round"],
    }
    print("  ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
