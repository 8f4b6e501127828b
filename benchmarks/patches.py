"""What fewer patches cost in accuracy, beside structured tickets and int8.

`python -m benchmarks.patches --out runs/patches`

Zero-shot accuracy of the embedded backbone on test images of a data source, through the ONNX models that a bundle would
hold, image by image; nothing is trained for the merging of patches. `benchmarks.edge` has the latency.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fedgraft.backbones import load_backbone
from fedgraft.core.randomness import generator
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.number_formats import find_format
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.parity import accuracy, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.patch_steps import parse_steps
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.training import StageStore, at_tenths
from fedgraft.edge_export.towers import with_patches

STEPS = ("", "0.75@2", "0.5@3", "0.5@2", "0.5@1", "0.5@2,0.5@3", "0.5@1,0.5@2")
FORMATS = ("none", "int8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/patches"))
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--distillation-steps", type=int, default=200)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), help="as --keep-patches takes them; '' keeps all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone, examples = load_backbone(args.backbone), open_source(args.data, 0)
    chosen = generator(0, "patches").permutation(len(examples))[: args.images]
    pixels = backbone.preprocess([examples.load(int(position)) for position in chosen]).numpy()
    labels = examples.labels[chosen]
    bank = backbone.text.encode_classes(examples.class_names, examples.templates).numpy()
    store = StageStore(args.out / "work", at_tenths(lambda line: print(line, flush=True)))
    lines = ["| heads and units removed | patches | accuracy | same class as with all patches | int8 | int8 as torch |"]
    lines.append("|" + "---|" * 6)
    for sparsity in args.sparsities:
        ticket: Ticket = dense_ticket(backbone)
        if sparsity:
            settings = {"sparsity": sparsity, "distillation_steps": args.distillation_steps}
            ticket = draw_ticket(backbone, TicketConfig.build(settings), store=store)
        whole = (torch_embeddings(ticket.vision, pixels) @ bank.T).argmax(1)
        for text in args.steps:
            tower = with_patches(ticket, parse_steps(text))
            model = export_onnx(tower.vision, pixels.shape[2:], {})
            wanted = (torch_embeddings(tower.vision, pixels) @ bank.T).argmax(1)
            found = {name: onnx_embeddings(find_format(name).reduce(model), pixels) for name in FORMATS}
            right = [accuracy(found[name], bank, labels) for name in FORMATS]
            same = 100 * np.mean((found["none"] @ bank.T).argmax(1) == whole)
            agreed = 100 * np.mean((found["int8"] @ bank.T).argmax(1) == wanted)
            figures = " | ".join(f"{value:.1f}" for value in (right[0], same, right[1], agreed))
            lines.append(f"| {100 * sparsity:.0f} % | {text or 'all'} | {figures} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
