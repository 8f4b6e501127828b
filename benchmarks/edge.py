"""Latency and size of a backbone's image tower as devices run it, and of swapping a class bank.

`python -m benchmarks.edge --backbone FOLDER --out runs/edge`, with any Hugging Face CLIP folder, or `photo` with some
`--variants`. Models are made first, each in its own process; they are then timed in turn, batch 1, each time in a fresh
process and several times over, so that a drift of the machine affects all alike. `fedgraft edge-report runs/edge` draws
the `latency.jsonl` it writes. `--cpu-time` counts the processor's time, which other work on the machine affects less.
`--without-avx512` times a machine's AVX2 kernels (needs gdb and objdump, see `benchmarks.masked_cpuid`).
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Variant:
    """One form of the image tower."""

    name: str
    sparsity: float
    pattern: str
    quantization: str
    keep_patches: str = ""


VARIANTS = (
    Variant("dense", 0.0, "dense", "none"),
    Variant("dense fp16", 0.0, "dense", "fp16"),
    Variant("dense int8", 0.0, "dense", "int8"),
    Variant("structured 50 %", 0.5, "structured", "none"),
    Variant("structured 50 % int8", 0.5, "structured", "int8"),
    Variant("unstructured 50 %", 0.5, "unstructured", "none"),
    Variant("dense, patches 0.5@4,0.5@8", 0.0, "dense", "none", "0.5@4,0.5@8"),
    Variant("structured 50 % int8, patches 0.5@8", 0.5, "structured", "int8", "0.5@8"),
    Variant("structured 50 % int8, patches 0.5@4,0.5@8", 0.5, "structured", "int8", "0.5@4,0.5@8"),
    Variant("structured 50 % int8, patches 0.5@2,0.5@6", 0.5, "structured", "int8", "0.5@2,0.5@6"),
)


def make(backbone_name: str, out: Path, names: list[str]) -> None:
    """Write those variants of one tower that do not exist yet."""
    wanted = [variant for variant in VARIANTS if variant.name in names and not _model(out, variant).exists()]
    if not wanted:
        return
    from fedgraft.backbones import load_backbone
    from fedgraft.backbones.loading import located
    from fedgraft.core.files import write_bytes
    from fedgraft.edge_export.number_formats import find_format
    from fedgraft.edge_export.onnx_model import export_onnx
    from fedgraft.edge_export.patch_steps import parse_steps
    from fedgraft.edge_export.tickets.draw import draw_ticket
    from fedgraft.edge_export.tickets.ticket import dense_ticket
    from fedgraft.edge_export.tickets.ticket_config import TicketConfig
    from fedgraft.edge_export.towers import with_patches

    backbone, first = load_backbone(backbone_name), wanted[0]
    if first.sparsity:
        settings = {"sparsity": first.sparsity, "pattern": first.pattern, "distillation_steps": 0}
        ticket = draw_ticket(backbone, TicketConfig.build(settings))
    else:
        ticket = dense_ticket(backbone)
    side = located(backbone_name).sizes().image_size
    tower = with_patches(ticket, parse_steps(first.keep_patches))
    model = export_onnx(tower.vision, (side, side), {"side": str(side)})
    for variant in wanted:
        write_bytes(_model(out, variant), find_format(variant.quantization).reduce(model))


def clock(path: Path, threads: int, repeat: int, cpu_time: bool) -> list[float]:
    """Milliseconds of single images."""
    import onnxruntime

    now = time.process_time if cpu_time else time.perf_counter
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[-1]
    pixels = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    taken = []
    for _ in range(repeat + 3):
        began = now()
        session.run(None, {"pixels": pixels})
        taken.append(1000 * (now() - began))
    return taken[3:]


def swapping(out: Path, backbone: Path, repeat: int) -> tuple[int, list[float]]:
    """Bytes of a class bank of 100 classes, and milliseconds to swap it, from reading and verifying to use."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedgraft.core.files import write_bytes
    from fedgraft.device import Predictor
    from fedgraft.device.manifest import canonical
    from fedgraft.edge_export import bundle_writer
    from fedgraft.edge_export.signing import signature_file

    key = Ed25519PrivateKey.generate()
    model = _model(out, VARIANTS[2]).read_bytes()
    config = json.loads((backbone / "preprocessor_config.json").read_text())
    features = np.random.default_rng(0).normal(size=(100, 512)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    classes = bundle_writer.class_files([f"class {number}" for number in range(100)], features, 100.0)
    golden = bundle_writer.golden_file(bundle_writer.golden_image(), features[0])
    encoder = bundle_writer.file_records({"model.onnx": model})["model.onnx"].sha256
    for version, kind, contents in (
        (2, "classes", classes),
        (1, "bundle", {**classes, **golden, **bundle_writer.preprocessor_file(config), "model.onnx": model}),
    ):
        manifest = canonical(
            {
                "format_version": 1, "kind": kind, "version": version, "encoder": encoder, "dim": 512,
                "calibration": {"temperature": 1.0, "unknown_below": 0.0}, "golden": {"min_cosine": 0.9},
                "files": {name: entry.model_dump() for name, entry in bundle_writer.file_records(contents).items()},
            }
        )  # fmt: skip
        for name, content in contents.items():
            write_bytes(out / kind / name, content)
        write_bytes(out / kind / "manifest.json", manifest)
        write_bytes(out / kind / "manifest.sig", signature_file(key, manifest))
    predictor, update = Predictor(out / "bundle"), out / "classes"
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        predictor.swap_classes(update)
        taken.append(1000 * (time.perf_counter() - began))
    return sum(map(len, classes.values())), taken


def measure(
    out: Path,
    variants: list[Variant],
    threads: int,
    rounds: int,
    repeat: int,
    cpu_time: bool,
    run: Callable[..., str],
) -> list[dict[str, Any]]:
    """All variants in turn, `rounds` times, each by `run` in a process of its own."""
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            options = ["--clock", str(_model(out, variant)), "--threads", str(threads), "--repeat", str(repeat)]
            taken[variant.name] += json.loads(run(*options, *(["--cpu-time"] if cpu_time else [])))
    rows: list[dict[str, Any]] = []
    for variant in variants:
        rows.append(
            {
                "name": variant.name,
                "megabytes": _model(out, variant).stat().st_size / 1e6,
                "ms": statistics.median(taken[variant.name]),
                "fastest_ms": min(taken[variant.name]),
                "pattern": variant.pattern,
                "sparsity": variant.sparsity,
                "quantization": variant.quantization,
                "keep_patches": variant.keep_patches,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with ratios to the dense tower."""
    dense = rows[0]
    lines = [
        "| image tower | ms (fastest) | times faster | MB | times smaller |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['ms']:.1f} ({row['fastest_ms']:.1f}) | {dense['ms'] / row['ms']:.2f} | "
        f"{row['megabytes']:.1f} | {dense['megabytes'] / row['megabytes']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _model(out: Path, variant: Variant) -> Path:
    patches = f"-{variant.keep_patches}" if variant.keep_patches else ""
    return out / f"{variant.pattern}-{variant.sparsity:g}-{variant.quantization}{patches}.onnx"


def _fresh(*options: str) -> str:
    return subprocess.run(_command(*options), check=True, capture_output=True, text=True).stdout


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.edge", *options]


def _without_avx512(*options: str) -> str:
    """As `_fresh`, in a process that finds no AVX-512."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        python, *arguments = _command(*options)
        run = f"run {shlex.join(arguments)} > {shlex.quote(str(printed))}"
        commands = ["set debuginfod enabled off", "source benchmarks/masked_cpuid.py", run]
        gdb = ["gdb", "--quiet", "--batch", *(part for command in commands for part in ("-ex", command))]
        subprocess.run([*gdb, python], check=True, capture_output=True, text=True)
        return printed.read_text()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="a Hugging Face CLIP folder, or photo")
    parser.add_argument("--out", type=Path, default=Path("runs/edge"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=8, help="images per round")
    parser.add_argument("--prepare-only", action="store_true", help="make the models but time nothing")
    parser.add_argument("--variants", nargs="+", help="some of them by name, the reference first")
    parser.add_argument("--cpu-time", action="store_true", help="of the process; give --threads 1")
    parser.add_argument("--without-avx512", action="store_true", help="the kernels for AVX2 on any machine")
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--clock", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--swap", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clock:
        print(json.dumps(clock(args.clock, args.threads, args.repeat, args.cpu_time)))
    elif args.make:
        make(args.backbone, args.out, args.make)
    elif args.swap:
        size, taken = swapping(args.out, Path(args.backbone), repeat=50)
        slowest = f"slowest of {len(taken)} {max(taken):.2f} ms"
        print(f"100 classes: {size:,} bytes, swapped in {statistics.median(taken):.2f} ms (median), {slowest}")
    else:
        chosen = [variant for variant in VARIANTS if variant.name in (args.variants or [v.name for v in VARIANTS])]
        towers: dict[tuple[Any, ...], list[str]] = {}
        for variant in chosen:
            key = (variant.sparsity, variant.pattern, variant.keep_patches)
            towers.setdefault(key, []).append(variant.name)
        for names in towers.values():
            _fresh("--backbone", args.backbone, "--out", str(args.out), "--make", *names)
        if args.prepare_only:
            return
        run = _without_avx512 if args.without_avx512 else _fresh
        rows = measure(args.out, chosen, args.threads, args.rounds, args.repeat, args.cpu_time, run)
        print(markdown(rows))
        if args.variants is None:
            print(_fresh("--backbone", args.backbone, "--out", str(args.out), "--swap"), end="")
        (args.out / "latency.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
