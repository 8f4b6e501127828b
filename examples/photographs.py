"""Photographs of four domains, such as Office-Caltech10: each domain left out in turn, two methods against zero-shot.

Shows: your own folder domain/class/image, the backbone for photographs, leave-one-domain-out, a comparison with seeds.
Takes: about ten minutes on two cores for 2,500 photographs, most of it for encoding them once; with --smoke, seconds.

    pip install "fedgraft[photo]"
    python examples/photographs.py --data PATH_TO_OFFICE_CALTECH10
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedgraft import compare


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the mean over the held-out domains and each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder domain/class/image")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--smoke", action="store_true", help="one round with the small embedded backbone")
    given = parser.parse_args(arguments)
    settings = {
        "data": f"folder:{given.data}",
        "protocol": "leave-one-domain-out",
        "backbone": "mini" if given.smoke else "photo",
        "sites": 3,  # one for each domain that takes part
        "rounds": 1 if given.smoke else 10,
        "shots": 2 if given.smoke else 16,
    }
    methods = ["zeroshot", "promptfl", "linear-probe"]
    comparison = compare(settings, methods, [0] if given.smoke else [0, 1, 2], given.out, resume=True)
    for entry in comparison["methods"]:
        figures = (f"{name} {value['mean']:.1f} ± {value['std']:.1f}" for name, value in entry["metrics"].items())
        print(f"{entry['method']}: {', '.join(figures)}")
    print(f"See {given.out}; fedgraft report {given.out} writes its page.")


if __name__ == "__main__":
    main()
