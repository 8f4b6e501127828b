"""Robust against natural tickets of the embedded backbone: `python -m benchmarks.tickets --out runs/tickets`.

For every seed, the plain tower and the towers made robust are cut by every pattern and sparsity, distilled with the
same budget on the same unlabelled images, and measured on the same tasks: zero-shot accuracy on base and novel classes
of `shapes` under base-to-novel, on each style that the backbone never saw, and on attacked images. A row is appended as
soon as it is known; existing rows are not computed again, and an interrupted training continues where it stopped.
`--table` prints the table of the rows and draws them.
"""

import argparse
import time
from pathlib import Path

import torch

from fedgraft.edge_export.sweep import Sweep, measure
from fedgraft.reports.edge import TICKETS, markdown, read_rows, ticket_table, write_edge_report

CUTS = (
    *(("unstructured", sparsity) for sparsity in (0.5, 0.7, 0.8, 0.9)),
    *(("structured", sparsity) for sparsity in (0.25, 0.5, 0.75)),
)


def _log(stage: str, done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tickets"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--inductions", nargs="+", default=["none", "pgd", "smoothing"])
    parser.add_argument("--scheme", default="omp")
    parser.add_argument("--images", type=int, default=4096, help="unlabelled images")
    parser.add_argument("--induction-steps", type=int, default=300)
    parser.add_argument("--distillation-steps", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="only print and draw the existing rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        steps = {"induction_steps": args.induction_steps, "distillation_steps": args.distillation_steps}
        settings = {"data": "procedural", "images": args.images, "scheme": args.scheme, **steps}
        measure(Sweep("mini", "shapes", tuple(args.seeds), CUTS, tuple(args.inductions), settings), args.out, _log)
    print(markdown(*ticket_table(read_rows(args.out / TICKETS))))
    print(f"Drawn in {write_edge_report(args.out)}")


if __name__ == "__main__":
    main()
