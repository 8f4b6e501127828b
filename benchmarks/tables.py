"""A comparison as a Markdown table, after `fedgraft compare ... --out runs/shapes`.

`python -m benchmarks.tables runs/shapes`
"""

import argparse
import json
from pathlib import Path
from typing import Any

TITLES = {"hm": "HM", "hm2": "HM(base, novel)", "cm": "CM", "worst_site": "worst site", "std": "std over sites"}


def markdown(comparison: dict[str, Any]) -> str:
    """Mean ± standard deviation of every metric, and the cost: parameters of a site, bytes, seconds of a run."""
    metrics = list(comparison["methods"][0]["metrics"])
    head = ["method", *(TITLES.get(name, name.removeprefix("domain:")) for name in metrics)]
    head += ["trainable", "shared", "uplink bytes per site per round", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry in comparison["methods"]:
        figures = [_figure(entry["metrics"][name], len(comparison["seeds"])) for name in metrics]
        cost = [
            f"{entry['trainable_parameters']:,}",
            f"{entry['shared_parameters']:,}",
            f"{entry['uplink_bytes_per_site_round']:,}",
            f"{entry['wall_seconds']:.0f}",
        ]
        lines.append("| " + " | ".join([f"`{entry['method']}`", *figures, *cost]) + " |")
    return "\n".join(lines)


def _figure(statistics: dict[str, float], seeds: int) -> str:
    return f"{statistics['mean']:.1f}" + (f" ± {statistics['std']:.1f}" if seeds > 1 else "")


def written(page: str, begin: str, end: str, content: str) -> str:
    """A page with what stands between two of its lines replaced."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparisons", type=Path, nargs="+", help="directories of comparisons")
    for folder in parser.parse_args().comparisons:
        print(f"\n{folder}\n\n{markdown(json.loads((folder / 'comparison.json').read_text()))}")


if __name__ == "__main__":
    main()
