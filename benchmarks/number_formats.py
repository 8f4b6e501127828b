"""How faithful each number format is to its torch tower, on every kind of processor; no time is measured.

`python -m benchmarks.number_formats` draws tickets of a backbone, reduces each to every format and measures, on images
that nothing was fitted on: the share of them with the torch tower's class, the centred cosine, and the accuracy of
zero-shot classification. int8 with all eight bits is measured beside them, as it was before 0.2, with what a processor
without VNNI makes of it, emulated.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

PATTERNS = ("dense", "structured", "rows")


def rows(
    backbone_name: str, data: str, patterns: tuple[str, ...], images: int, emulated: int, steps: int
) -> Iterator[dict[str, Any]]:
    """A row for each pattern and format.

    Args:
        images: number of images to measure on; others, where a format needs some, to measure ranges on.
        emulated: number of images to emulate a processor without VNNI on, where it can differ.
        steps: of distillation, for tickets at half the weights.
    """
    from fedgraft.backbones import load_backbone
    from fedgraft.data.sources.source import open_source
    from fedgraft.edge_export.measure import device_preprocessing
    from fedgraft.edge_export.measurement_images import evenly
    from fedgraft.edge_export.number_formats import NUMBER_FORMATS
    from fedgraft.edge_export.onnx_model import export_onnx
    from fedgraft.edge_export.parity import accuracy, compare, onnx_embeddings, torch_embeddings
    from fedgraft.edge_export.saturation import saturating_embeddings, saturating_pairs
    from fedgraft.edge_export.tickets.draw import draw_ticket
    from fedgraft.edge_export.tickets.ticket import dense_ticket
    from fedgraft.edge_export.tickets.ticket_config import TicketConfig

    backbone, examples = load_backbone(backbone_name), open_source(data, 0)
    formats = {**NUMBER_FORMATS, "int8, eight bits": replace(NUMBER_FORMATS["int8"], convert=_eight_bits)}
    most = max(known.calibration_images for known in formats.values())
    chosen = evenly(np.arange(len(examples)), images + most)
    ranged = chosen[:: max(1, len(chosen) // most)][:most]
    measured = np.setdiff1d(chosen, ranged)
    preprocessing = device_preprocessing(backbone)

    def load(positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return preprocessing.batch([examples.load(int(position)) for position in positions])

    pixels, ranges, truths = load(measured), load(ranged), examples.labels[measured]
    bank = backbone.text.encode_classes(examples.class_names, examples.templates).numpy()
    for pattern in patterns:
        ticket = dense_ticket(backbone)
        if pattern != "dense":
            ticket = draw_ticket(backbone, TicketConfig.build({"pattern": pattern, "distillation_steps": steps}))
        side = pixels.shape[2], pixels.shape[3]
        model, reference = export_onnx(ticket.vision, side, {}), torch_embeddings(ticket.vision, pixels)
        for name, known in formats.items():
            content = known.reduce(model, ranges)
            loaded, found = onnx.load_from_string(content), onnx_embeddings(content, pixels)
            parity, pairs = compare(reference, found, bank), saturating_pairs(loaded)
            row: dict[str, Any] = {
                "pattern": pattern,
                "format": name,
                "megabytes": len(content) / 1e6,
                "images": parity.images,
                "agreement": parity.top1_agreement,
                "centred_cosine": parity.centred_cosine,
                "accuracy": accuracy(found, bank, truths),
                "torch_accuracy": accuracy(reference, bank, truths),
                "pairs": pairs,
            }
            if pairs:
                few = evenly(np.arange(len(pixels)), emulated)
                worst = compare(reference[few], saturating_embeddings(loaded, pixels[few]), bank)
                row |= {"worst_agreement": worst.top1_agreement, "worst_cosine": worst.centred_cosine}
            yield row


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table; without pairs that saturate, a processor without VNNI computes the same."""
    lines = [
        "| image tower | format | MB | same class | centred cosine | without VNNI | accuracy (torch) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        worst = "no 8-bit products" if row["pairs"] is None else "the same integers"
        if row["pairs"]:
            worst = f"{row['worst_agreement']:.1f} %, {row['worst_cosine']:.3f} ({row['pairs']:,} pairs saturate)"
        lines.append(
            f"| {row['pattern']} | {row['format']} | {row['megabytes']:.2f} | {row['agreement']:.1f} % | "
            f"{row['centred_cosine']:.4f} | {worst} | {row['accuracy']:.1f} % ({row['torch_accuracy']:.1f} %) |"
        )
    return "\n".join(lines)


def _eight_bits(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> onnx.ModelProto:
    import tempfile

    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        target, products = Path(folder) / "int8.onnx", ["MatMul", "Gemm"]
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=products)
        return onnx.load(target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--patterns", default=",".join(PATTERNS), help="dense, or of tickets at half the weights")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--emulated", type=int, default=64)
    parser.add_argument("--distillation-steps", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    args = parser.parse_args()
    found = []
    patterns = tuple(args.patterns.split(","))
    for row in rows(args.backbone, args.data, patterns, args.images, args.emulated, args.distillation_steps):
        found.append(row)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text("".join(json.dumps(each) + "\n" for each in found))
    print(markdown(found))


if __name__ == "__main__":
    main()
