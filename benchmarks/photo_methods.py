"""Which methods keep what `photo` knows of photographs: all methods on three folders and three protocols, three seeds.

`python -m benchmarks.photo_methods --data DIR --out DIR` reads the folders that `benchmarks.photo` reads, and runs
unattended, one seed after another. Results go to benchmarks/photo_methods.json; what is there is not run again, and a
run that was stopped goes on. Without --data it prints the tables of what is there; `--write` puts them into the page.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.tables import written
from fedgraft import Resources, compare
from fedgraft.config.notation import split
from fedgraft.config.registry import METHODS as REGISTERED
from fedgraft.core.observer import Observer
from fedgraft.simulation.comparison import Entry

METHODS = (
    "zeroshot", "promptfl", "fedit", "kgcoop", "fedpgp", "local", "proxprompt", "ffa-lora", "fedsa-lora", "fedex-lora",
    "flora", "flexlora", "fedit+anchored(drift=0.08)", "linear-probe", "clip-adapter", "fedclip", "tip-adapter",
)  # fmt: skip
COMMON: dict[str, Any] = {"backbone": "photo", "rounds": 10, "local_epochs": 2, "shots": 16, "n_ctx": 4}
CASES: tuple[dict[str, Any], ...] = (
    {"folder": "caltech101", "protocol": "base-to-novel", "sites": 10},
    {"folder": "pacs", "protocol": "leave-one-domain-out", "sites": 3},
    {"folder": "office_caltech10", "protocol": "leave-one-domain-out", "sites": 3},
    {"folder": "pacs", "protocol": "domain-per-site", "sites": 4},
    {"folder": "office_caltech10", "protocol": "domain-per-site", "sites": 4},
)
RESULTS = Path(__file__).with_name("photo_methods.json")
"""By case, method and seed: the metrics after the last round by name, and what a site sends in a round."""
PAGE = Path("docs/results.md")
BEGIN, END = "<!-- python -m benchmarks.photo_methods --write -->", "<!-- end of the tables on photo -->"
TITLES = {"caltech101": "Caltech-101", "pacs": "PACS", "office_caltech10": "Office-Caltech10"}
COLUMNS = {
    "base-to-novel": {"local": "local", "base": "base", "novel": "novel", "hm": "HM"},
    "leave-one-domain-out": {},  # every domain, and the mean
    "domain-per-site": {"own": "own", "others": "others", "worst_site": "worst site"},
}

Results = dict[str, dict[str, dict[str, dict[str, float]]]]


class _Lines(Observer):
    """A line a run."""

    def on_notice(self, sentence: str) -> None:
        """Which run begins."""
        print(sentence, flush=True)


def name_of(case: Mapping[str, Any]) -> str:
    """Such as pacs-domain-per-site."""
    return f"{case['folder']}-{case['protocol']}"


def known() -> Results:
    """The results so far."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def run(case: Mapping[str, Any], methods: list[str], seed: int, args: argparse.Namespace) -> None:
    """Run methods with one seed and keep their results."""
    settings: dict[str, Any] = {**COMMON, **case, "eval_every": COMMON["rounds"]}
    settings["data"] = f"folder:{args.data / settings.pop('folder')}"
    if not any("n_ctx" in REGISTERED.load(Entry.parse(method).method).options.model_fields for method in methods):
        del settings["n_ctx"]
    resources = Resources(workers=args.workers)
    compared = compare(
        settings, methods, [seed], args.out / name_of(case), resume=True, resources=resources, observer=_Lines()
    )
    results = known()
    own = results.setdefault(name_of(case), {})
    for entry in compared["methods"]:
        cost = {key: entry[key] for key in ("shared_parameters", "uplink_bytes_per_site_round")}
        figures = {name: value["values"][0] for name, value in entry["metrics"].items()}
        own.setdefault(entry["method"], {})[str(seed)] = {**figures, **cost}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def tables() -> str:
    """Mean ± standard deviation over the seeds of every method, a table for each case."""
    parts = []
    for case in CASES:
        results = known().get(name_of(case), {})
        if not results:
            continue
        first = next(iter(next(iter(results.values())).values()))
        domains = {key: key.removeprefix("domain:") for key in first if key.startswith("domain:")}
        columns = COLUMNS[case["protocol"]] or {**domains, "mean": "mean"}
        head = ["method", *columns.values(), "shared", "uplink bytes per site per round"]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for method in METHODS:
            if found := list(results.get(method, {}).values()):
                figures = [_figure([each[key] for each in found]) for key in columns]
                cost = [f"{found[0][key]:,}" for key in ("shared_parameters", "uplink_bytes_per_site_round")]
                lines.append("| " + " | ".join([f"`{method}`", *figures, *cost]) + " |")
        title = f"### {TITLES[case['folder']]}, {case['protocol']}, {case['sites']} sites"
        parts.append(title + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _figure(values: list[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with the three folders")
    parser.add_argument("--out", type=Path, default=Path("runs/photo"), help="directory of the runs")
    parser.add_argument("--methods", default=",".join(METHODS), help="as `fedgraft compare` reads them")
    parser.add_argument("--cases", default="", help="some of them, such as pacs-domain-per-site, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {PAGE}")
    args = parser.parse_args()
    cases = [case for case in CASES if not args.cases or name_of(case) in args.cases.split(",")]
    for seed in map(int, args.seeds.split(",")) if args.data else ():
        for case in cases:
            done = known().get(name_of(case), {})
            missing = [method for method in split(args.methods, ",") if str(seed) not in done.get(method, {})]
            print(f"{name_of(case)}, seed {seed}: {len(missing)} runs", flush=True)
            if missing:
                run(case, missing, seed, args)
    if args.write:
        PAGE.write_text(written(PAGE.read_text(), BEGIN, END, tables()))
    else:
        print(tables())


if __name__ == "__main__":
    main()
