"""How long it takes to read and hash a folder of JPEG files, against reading their bytes twice; and the second run.

`python -m benchmarks.reading`
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.data.sources import file_keys
from fedgraft.data.sources.source import open_source

CLASSES = 100


def write_photos(root: Path, count: int, side: int) -> list[Path]:
    """JPEG files of noise, all different, in a hundred classes."""
    rng = np.random.default_rng(0)
    paths = []
    coarse = rng.integers(0, 256, (64, side // 8, side // 8, 3), np.uint8)
    for number in range(count):
        path = root / f"class_{number % CLASSES:03d}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(coarse[number % 64]).resize((side, side))
        image.save(path, quality=85, comment=f"image {number}")
        paths.append(path)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a function."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_twice(paths: list[Path]) -> None:
    """Read every file's bytes two times."""
    for _ in range(2):
        for path in paths:
            path.read_bytes()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256, help="pixels of a side")
    parser.add_argument("--repeat", type=int, default=5, help="the median counts; the two are timed in turn")
    parser.add_argument("--json", type=Path, default=Path("runs/reading.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        paths = write_photos(photos, args.images, args.side)
        time.sleep(file_keys.SETTLED_NS / 1e9)
        twice, first, again = [], [], []
        read_twice(paths)
        for number in range(args.repeat):
            os.environ["FEDGRAFT_CACHE"] = f"{folder}/cache-{number}"
            twice.append(seconds(lambda: read_twice(paths)))
            first.append(seconds(lambda: open_source(f"folder:{photos}", 0)))
            again.append(seconds(lambda: open_source(f"folder:{photos}", 0)))
        figures = {
            "images": args.images,
            "bytes_of_an_image": sum(path.stat().st_size for path in paths) // len(paths),
            "bytes_twice_seconds": statistics.median(twice),
            "first_run_seconds": statistics.median(first),
            "second_run_seconds": statistics.median(again),
        }
    for name, value in figures.items():
        print(f"{name:<20} {value:.3f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
