"""How long a newcomer waits: `fedgraft --help`, and the quickstart on an empty cache.

`python -m benchmarks.startup`
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = ("quickstart",)


def seconds(*arguments: str, cache: str) -> float:
    """Wall time of one command."""
    began = time.monotonic()
    command = [sys.executable, "-m", "fedgraft", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "FEDGRAFT_CACHE": cache})
    return time.monotonic() - began


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="calls of --help; the median counts")
    parser.add_argument("--json", type=Path, default=Path("runs/startup.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "help_seconds": statistics.median(seconds("--help", cache=folder) for _ in range(args.repeat)),
            "quickstart_seconds": seconds(*QUICKSTART, "--out", f"{folder}/run", cache=folder),
        }
    for name, value in figures.items():
        print(f"{name:<20} {value:.2f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
