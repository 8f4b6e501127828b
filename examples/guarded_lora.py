"""LoRA in the text tower, with and without a guard on what it forgets.

Shows: a low-rank method, anchored aggregation, which bounds the drift of the server's model without any data, and what
the bound did, round by round. On digits training overfits the base classes, so that there is something to guard.
Takes: about a minute on two cores; with --smoke, seconds.

    python examples/guarded_lora.py
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedgraft import compare


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare both with zero-shot, and print the drift of the server's model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guarded-lora"))
    parser.add_argument("--smoke", action="store_true", help="two sites and one round")
    given = parser.parse_args(arguments)
    settings = {"data": "digits", "sites": 5, "rounds": 25, "shots": 64}
    if given.smoke:
        settings |= {"sites": 2, "rounds": 1, "shots": 2}
    methods = ["zeroshot", "fedit+drift", "fedit+anchored(drift=0.08)"]
    comparison = compare(settings, methods, [0], given.out, resume=True)
    for entry, run in zip(comparison["methods"], comparison["runs"], strict=True):
        figures = ", ".join(f"{name} {entry['metrics'][name]['mean']:.1f}" for name in ("base", "novel", "hm"))
        rows = map(json.loads, (given.out / run / "metrics.jsonl").read_text().splitlines())
        drifts = [f"{row['drift']:.3f}" for row in rows if row.get("drift") is not None]
        print(f"{entry['method']}: {figures}{'; drift ' + ' '.join(drifts) if drifts else ''}")


if __name__ == "__main__":
    main()
