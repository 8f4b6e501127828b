"""What methods and server strategies keep of the backbone's knowledge: all of them, on three sources and two protocols.

`python -m benchmarks.generalization --out runs/generalization` runs unattended and goes on where it was stopped.
Digits have one domain, so leave-one-domain-out is on shapes and characters alone.
"""

import argparse
import json
from pathlib import Path

from benchmarks.tables import markdown
from fedgraft import compare
from fedgraft.server.observer import Observer
from fedgraft.server.report import write_report
from fedgraft.terms import split

WORDS = "ctx_init=a photo of a"
BUDGET = "anchored(drift=0.08)"
"""The budget, the coefficient below and the momentum were chosen with seeds 7 and 8, which no table has."""
METHODS = (
    "zeroshot", "local", "promptfl", "fedpgp", "kgcoop", "proxprompt",
    "promptfl+fedavgm(momentum=0.5)", "promptfl+fedadam", "promptfl+fedyogi",
    f"promptfl({WORDS})", f"promptfl({WORDS})+interpolate(coefficient=0.9)", f"promptfl({WORDS})+{BUDGET}",
    f"fedpgp({WORDS})", f"fedpgp({WORDS})+{BUDGET}",
    "ffa-lora", "fedsa-lora", "fedex-lora", "flora", "flexlora", "fedit",
    "fedit+fedavgm(momentum=0.5)", "fedit+fedadam", "fedit+fedyogi", "fedit+interpolate(coefficient=0.9)",
    "fedit+anchored(drift=0.02)", f"fedit+{BUDGET}",
)  # fmt: skip
CASES = (
    {"data": "shapes", "protocol": "base-to-novel", "sites": 10, "rounds": 25, "shots": 16},
    {"data": "characters", "protocol": "base-to-novel", "sites": 6, "rounds": 25, "shots": 16},
    {"data": "digits", "protocol": "base-to-novel", "sites": 5, "rounds": 25, "shots": 64},
    {"data": "characters", "protocol": "leave-one-domain-out", "sites": 4, "rounds": 3, "shots": 4},
    {"data": "shapes", "protocol": "leave-one-domain-out", "sites": 5, "rounds": 3, "shots": 2},
)


class _Lines(Observer):
    """A line a run."""

    def notice(self, sentence: str) -> None:
        """Which run begins."""
        print(sentence, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparisons and of the tables")
    parser.add_argument("--methods", default=",".join(METHODS), help="as `fedgraft compare` reads them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, help="of every case, to try it out")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    sections = []
    for case in CASES:
        rounds = args.rounds or case["rounds"]
        folder = args.out / f"{case['data']}-{case['protocol']}"
        print(folder, flush=True)
        comparison = compare(
            {**case, "rounds": rounds, "eval_every": rounds},
            split(args.methods, ","),
            seeds,
            folder,
            resume=True,
            workers=args.workers,
            observer=_Lines(),
        )
        write_report(folder)
        sections.append(f"## {case['data']}, {case['protocol']}: {json.dumps(case)}\n\n{markdown(comparison)}\n")
        (args.out / "tables.md").write_text("\n".join(sections))
    print((args.out / "tables.md").read_text())


if __name__ == "__main__":
    main()
