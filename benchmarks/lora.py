"""A training step of low-rank methods beside one of promptfl, in turn: `python -m benchmarks.lora --backbone PATH`.

A step is loss, backward and Adam on cached images: features, or what enters the first adapted layer of the image tower.
Seconds are medians of wall time and of the process's own CPU time, which other programs disturb less. The memory is the
largest resident set of the process, with the whole backbone loaded.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import class_names, seconds
from fedgraft.backbones import Backbone, load_backbone
from fedgraft.config.registry import METHODS
from fedgraft.methods.vocabulary import Vocabulary

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "this is a {}", "a {}")


def step_of(name: str, options: dict[str, Any], backbone: Backbone, args: argparse.Namespace) -> Callable[[], None]:
    """One step of a method."""
    classes, batch = args.classes, args.batch
    method = METHODS.load(name)
    parsed = method.parse_options(options)
    vocabulary = Vocabulary(backbone, class_names(classes), TEMPLATES[: args.templates])
    adapter = method.adapter(vocabulary, parsed, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-4)
    shape = backbone.image_shape(method.adapter.representation(backbone, parsed))
    images = torch.nn.functional.normalize(torch.randn(batch, *shape), dim=-1)
    labels = torch.randint(classes, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        adapter.loss(images, labels, tuple(range(classes))).backward()
        optimizer.step()

    return step


def measure(backbone: Backbone, names: list[str], options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Medians of all methods' steps, taken in turn."""
    steps = {"promptfl": step_of("promptfl", {}, backbone, args)}
    steps |= {name: step_of(name, options, backbone, args) for name in names}
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(args.repeat):
        for name, step in steps.items():
            began = time.process_time()
            wall = seconds(step)
            times[name].append((wall, time.process_time() - began))
    wall, cpu = ({name: statistics.median(pair[which] for pair in times[name]) for name in steps} for which in (0, 1))
    return {
        "classes": args.classes,
        "templates": args.templates,
        "options": options,
        "threads": torch.get_num_threads(),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "over_promptfl": {name: [wall[name] / wall["promptfl"], cpu[name] / cpu["promptfl"]] for name in names},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a Hugging Face CLIP folder")
    parser.add_argument("--methods", nargs="+", default=["fedsa-lora"])
    parser.add_argument("--tower", default="text", choices=["text", "image", "both"])
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--templates", type=int, default=1, help="hand-written prompts a class, up to five")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("runs/lora.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    options = {"rank": args.rank, "tower": args.tower, "layers": args.layers, "templates": 0}
    result = measure(load_backbone(args.backbone), args.methods, options, args)
    print(json.dumps(result, indent=2))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
