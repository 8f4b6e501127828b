"""What a round costs beyond training, and a worker's memory: `python -m benchmarks.round --backbone PATH --classes 50`.

Two runs on Flower's engine with the same workers, nodes and messages, one after the other: one whose clients answer
at once with what they were sent, which is the floor that Flower and Ray set; and fedgraft's with FedPGP on a folder of
noise images with as many classes as asked for. A round's overhead is its wall time, from the first message to the
last reply, less the workers' training time divided by the number of workers. Memory is each worker's largest resident
set as the kernel kept it, mapped files included.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from PIL import Image

from benchmarks.step import class_names
from fedgraft import Resources, RunConfig, simulate
from fedgraft.core.observer import Observer
from fedgraft.flower.messages import SHARED, for_sites, to_array_record
from fedgraft.server.sender import Sender

_N_CTX = 16


class Workers(Observer):
    """The largest resident set of any Ray worker at the end of a round, and when rounds ended."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self.ends: list[float] = []

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Read the kernel's high-water marks."""
        self.ends.append(time.monotonic())
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                name = (status.parent / "cmdline").read_bytes()
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except OSError:  # a process that has just ended
                continue
            if b"ClientAppActor" in name:
                self.megabytes = max(self.megabytes, int(lines["VmHWM"].split()[0]) * 1024 / 1e6)


def noise_images(folder: Path, classes: int) -> None:
    """Four small images of noise for each class."""
    rng = np.random.default_rng(0)
    for name in class_names(classes):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def fedgraft_rounds(backbone: str, classes: int, sites: int, rounds: int, workers: int, cpus: int) -> dict[str, float]:
    """A run of fedgraft."""
    clock = Workers()
    with tempfile.TemporaryDirectory() as folder:
        noise_images(Path(folder) / "images", classes)
        settings = {
            "method": "fedpgp", "data": f"folder:{folder}/images", "backbone": backbone, "protocol": "dirichlet",
            "sites": sites, "rounds": rounds, "shots": 0, "local_epochs": 1, "test_fraction": 0.5,
            "method_options": {"n_ctx": _N_CTX}, "protocol_options": {"partition": "iid"},
        }  # fmt: skip
        on_ray = Resources(workers, cpus, gpus_per_worker=0.0)
        summary = simulate(RunConfig.build(settings), Path(folder) / "run", resources=on_ray, observer=clock)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["scope"] == "train"][1:]
    walls = [after - before for before, after in zip(clock.ends[:-1], clock.ends[1:], strict=True)][1:]
    return {
        "round_seconds": statistics.median(walls),
        "training_seconds": statistics.median(row["training_seconds"] / workers for row in trained),
        "exchange_overhead_seconds": statistics.median(
            row["seconds"] - row["training_seconds"] / workers for row in trained
        ),
        "evaluation_and_checkpoint_seconds": statistics.median(
            wall - row["seconds"] for wall, row in zip(walls, trained, strict=True)
        ),
        "worker_mb": clock.megabytes,
        "uplink_bytes": summary["uplink_bytes_per_site_round"],
    }


def floor_seconds(width: int, sites: int, rounds: int, workers: int, cpus: int) -> float:
    """Median of rounds of as many messages of the same size, which clients send back."""
    client_app, server_app = ClientApp(), ServerApp()
    seconds: list[float] = []

    @client_app.train()
    def echo(message: Message, context: Context) -> Message:
        return Message(RecordDict(dict(message.content)), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < sites:
            time.sleep(0.1)
        sender = Sender(grid, threading.Event())
        nodes = sorted(grid.get_node_ids())
        content = for_sites(
            RecordDict({SHARED: to_array_record({"sigma": np.zeros((1, _N_CTX, width), np.float32)})}), [0]
        )
        for _ in range(rounds):
            began = time.monotonic()
            sender([Message(content, dst_node_id=node, message_type="train") for node in nodes])
            seconds.append(time.monotonic() - began)

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    run_simulation(
        server_app=server_app, client_app=client_app, num_supernodes=sites,
        backend_config={
            "client_resources": {"num_cpus": cpus, "num_gpus": 0.0},
            "init_args": {"address": "local", "num_cpus": workers * cpus, "logging_level": logging.ERROR,
                          "log_to_driver": False},
        },
    )  # fmt: skip
    return statistics.median(seconds[1:])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini", help="mini or a Hugging Face CLIP folder")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus-per-worker", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("runs/round.json"))
    args = parser.parse_args()
    folder = Path(args.backbone) / "config.json"
    width = json.loads(folder.read_text())["text_config"].get("hidden_size", 512) if folder.exists() else 128
    floor = floor_seconds(width, args.sites, args.rounds, args.workers, args.cpus_per_worker)
    own = fedgraft_rounds(args.backbone, args.classes, args.sites, args.rounds, args.workers, args.cpus_per_worker)
    result = {"classes": args.classes, "sites": args.sites, "floor_seconds": floor, **own}
    print("  ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
