"""A staged rollout to 1,000 simulated devices with 5 % faults, a registry that is killed 20 times; a class bank's size.

`python -m benchmarks.fleet` plays `fedgraft fleet simulate`, and measures what 100 classes at width 512 move to one.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.edge_export.bundle_writer import class_files
from fedgraft.fleet.simulated_bundle import signed
from fedgraft.fleet.simulation import FleetSimulation, simulate_fleet

MOST_SECONDS, MOST_REGISTRY_MB, MOST_BANK_BYTES = 600, 500, 256 * 1024


def bank_bytes(classes: int = 100, width: int = 512) -> int:
    """The bytes of a class bank alone with its manifest and signature, all that a device fetches of it."""
    features = np.random.default_rng(0).normal(size=(classes, width)).astype(np.float32)
    files = class_files([f"class number {index}" for index in range(classes)], features, 100.0)
    return sum(map(len, signed(files, 2, Ed25519PrivateKey.generate(), "0" * 64).values()))


def main() -> None:
    """The command; exit code 1 if a figure is beyond its limit, or anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/fleet.json"))
    args = parser.parse_args()
    settings = FleetSimulation(args.devices, args.seed, args.processes, args.faults, args.kills, timeout=3600)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the processes that it has started
    folder = Path(tempfile.mkdtemp(prefix="fedgraft-fleet-"))
    try:
        done = simulate_fleet(folder / "out", settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures: dict[str, Any] = {**asdict(done), "bank_bytes": bank_bytes()}
    for name, value in figures.items():
        print(f"{name:<12} {value:.1f}" if isinstance(value, float) else f"{name:<12} {value}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    within = done.seconds < MOST_SECONDS and done.registry_mb < MOST_REGISTRY_MB
    sys.exit(0 if done.whole and within and figures["bank_bytes"] < MOST_BANK_BYTES else 1)


if __name__ == "__main__":
    main()
