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
METHODS = (
    "zeroshot", "local", "promptfl", "fedpgp", "kgcoop", "proxprompt",
    "promptfl+interpolate", "promptfl+fedadam", "promptfl+fedyogi", "promptfl+fedavgm",
    f"promptfl({WORDS})", f"promptfl({WORDS})+anchored", f"fedpgp({WORDS})", f"fedpgp({WORDS})+anchored",
)  # fmt: skip
CASES = (
    {"data": "shapes", "protocol": "base-to-novel", "sites": 10, "rounds": 15, "shots": 16},
    {"data": "characters", "protocol": "base-to-novel", "sites": 6, "rounds": 15, "shots": 16},
    {"data": "digits", "protocol": "base-to-novel", "sites": 5, "rounds": 10, "shots": 64},
    {"data": "shapes", "protocol": "leave-one-domain-out", "sites": 5, "rounds": 5, "shots": 2},
    {"data": "characters", "protocol": "leave-one-domain-out", "sites": 4, "rounds": 5, "shots": 4},
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
