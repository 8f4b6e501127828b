"""Which methods keep what `photo` knows of photographs: all methods on three folders and three protocols, three seeds.

`python -m benchmarks.photo_methods --data DIR --out DIR` reads the folders that `benchmarks.photo` reads, runs
unattended, and goes on where it was stopped; `tables.md` holds the comparisons that are finished.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from fedgraft import Resources, compare
from fedgraft.config.notation import split
from fedgraft.core.observer import Observer
from fedgraft.reports import write_report

METHODS = (
    "zeroshot", "promptfl", "fedit", "kgcoop", "fedpgp", "local", "proxprompt", "ffa-lora", "fedsa-lora", "fedex-lora",
    "flora", "flexlora", "fedit+anchored(drift=0.08)", "linear-probe", "clip-adapter", "fedclip", "tip-adapter",
)  # fmt: skip
COMMON = {"backbone": "photo", "rounds": 10, "local_epochs": 2, "shots": 16, "n_ctx": 4}
CASES = (
    {"folder": "caltech101", "protocol": "base-to-novel", "sites": 10},
    {"folder": "pacs", "protocol": "leave-one-domain-out", "sites": 3},
    {"folder": "office_caltech10", "protocol": "leave-one-domain-out", "sites": 3},
    {"folder": "pacs", "protocol": "domain-per-site", "sites": 4},
    {"folder": "office_caltech10", "protocol": "domain-per-site", "sites": 4},
)


class _Lines(Observer):
    """A line a run."""

    def on_notice(self, sentence: str) -> None:
        """Which run begins."""
        print(sentence, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the three folders")
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparisons and of the tables")
    parser.add_argument("--methods", default=",".join(METHODS), help="as `fedgraft compare` reads them")
    parser.add_argument("--cases", default="", help="some of them, such as pacs-domain-per-site, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=COMMON["rounds"], help="to try it out")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    seeds, sections = [int(seed) for seed in args.seeds.split(",")], []
    for case in CASES:
        folder = args.out / f"{case['folder']}-{case['protocol']}"
        if args.cases and folder.name not in args.cases.split(","):
            continue
        settings: dict[str, Any] = {**COMMON, **case, "rounds": args.rounds, "eval_every": args.rounds}
        settings["data"] = f"folder:{args.data / settings.pop('folder')}"
        print(folder, flush=True)
        comparison = compare(
            settings,
            split(args.methods, ","),
            seeds,
            folder,
            resume=True,
            resources=Resources(workers=args.workers),
            observer=_Lines(),
        )
        write_report(folder)
        sections.append(f"## {case['folder']}, {case['protocol']}: {json.dumps(settings)}\n\n{markdown(comparison)}\n")
        (args.out / "tables.md").write_text("\n".join(sections))
    print("\n".join(sections))


if __name__ == "__main__":
    main()
