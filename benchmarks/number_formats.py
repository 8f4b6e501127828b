"""How faithful each number format is to its torch tower, on every kind of processor; no time is measured.

`python -m benchmarks.number_formats` draws tickets of a backbone, reduces each to every format and measures, on images
that nothing was fitted on: the share of them with the torch tower's class, the centred cosine, and the accuracy of
zero-shot classification. int8 with all eight bits is measured beside them, as it was before 0.2, with what a processor
without VNNI makes of it, emulated. `--qemu qemu-x86_64` computes every 8-bit model with onnxruntime's own kernels for
such a processor instead, on an emulated Haswell, image by image and slowly.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

_EMBED = """
import sys, numpy, onnxruntime
folder = sys.argv[1]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
rows = [session.run(["embedding"], {"pixels": image[None]})[0] for image in numpy.load(folder + "/pixels.npy")]
numpy.save(folder + "/embeddings.npy", numpy.concatenate(rows))
"""
PATTERNS = ("dense", "structured", "rows")


def rows(
    backbone_name: str,
    data: str,
    patterns: tuple[str, ...],
    images: int,
    emulated: int,
    steps: int,
    qemu: str | None = None,
) -> Iterator[dict[str, Any]]:
    """A row for each pattern and format.

    Args:
        images: number of images to measure on; others, where a format needs some, to measure ranges on.
        emulated: number of images to emulate a processor without VNNI on, where it can differ.
        steps: of distillation, for tickets at half the weights.
        qemu: the command that runs onnxruntime on such a processor, for every 8-bit model.
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
            if pairs or (qemu and pairs is not None):
                few = evenly(np.arange(len(pixels)), emulated)
                there = without_vnni(qemu, content, pixels[few]) if qemu else saturating_embeddings(loaded, pixels[few])
                worst = compare(reference[few], there, bank)
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
        if "worst_cosine" in row:
            worst = f"{row['worst_agreement']:.1f} %, {row['worst_cosine']:.3f} ({row['pairs']:,} pairs saturate)"
        lines.append(
            f"| {row['pattern']} | {row['format']} | {row['megabytes']:.2f} | {row['agreement']:.1f} % | "
            f"{row['centred_cosine']:.4f} | {worst} | {row['accuracy']:.1f} % ({row['torch_accuracy']:.1f} %) |"
        )
    return "\n".join(lines)


def without_vnni(qemu: str, model: bytes, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings (n, dim) by onnxruntime under qemu, on a processor with AVX2 and without VNNI."""
    python: str = getattr(sys, "_base_executable", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(model)
        (Path(folder) / "embed.py").write_text(_EMBED)
        np.save(Path(folder) / "pixels.npy", pixels)
        paths = f"PYTHONPATH={':'.join(path for path in sys.path if path)}"
        command = [qemu, "-cpu", "Haswell", "-E", paths, python, f"{folder}/embed.py", folder]
        subprocess.run(command, check=True, capture_output=True)
        return np.asarray(np.load(Path(folder) / "embeddings.npy"), np.float32)


def _eight_bits(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> onnx.ModelProto:
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
    parser.add_argument("--qemu", help="qemu-x86_64, to compute without VNNI")
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    args = parser.parse_args()
    found = []
    patterns = tuple(args.patterns.split(","))
    steps, images = args.distillation_steps, args.images
    for row in rows(args.backbone, args.data, patterns, images, args.emulated, steps, args.qemu):
        found.append(row)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text("".join(json.dumps(each) + "\n" for each in found))
    print(markdown(found))


if __name__ == "__main__":
    main()
