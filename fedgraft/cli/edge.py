"""`fedgraft export` and `fedgraft device ...`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.cli.device_errors import device_errors
from fedgraft.cli.fields import with_fields
from fedgraft.cli.settings import Json
from fedgraft.core.errors import UserError
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions, parse_labels

device_app = typer.Typer(no_args_is_help=True, help="Run a bundle as a device does: predict, bench, verify.")
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory or a zip.")]
PublicKey = Annotated[
    str | None, typer.Option(help="The required signer's public key: a PEM file or 64 hexadecimal digits.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of onnxruntime.", show_default="one per core")]

Provider = Annotated[str, typer.Option(help="What computes, by onnxruntime's name, such as cpu or cuda.")]


@with_fields(BundleOptions, "Settings of the export", without=("most_images", "ticket_seed", "distillation_steps"))
def export(
    settings: dict[str, Any],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    out: Annotated[Path, typer.Option(help="A new directory, or a name that ends in .zip.")],
    labels: Annotated[
        str | None, typer.Option(help="Other classes: names separated by commas, or a file.", show_default="the run's")
    ] = None,
    classes_for: Annotated[
        Path | None, typer.Option(help="A bundle whose encoder stays: write only a class bank for it.")
    ] = None,
    site_folder: Annotated[Path | None, typer.Option(help="A deployed site's folder, on its own machine.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images class/image to measure on, not the run's own.")] = None,
    golden_images: Annotated[
        Path | None,
        typer.Option(help="Images class/image that devices get for their self test.", show_default="fedgraft's own"),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The signing key, created if missing.", show_default="the user's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a signed bundle for devices: ONNX image encoder, class bank, labels, preprocessing."""
    from fedgraft.cli.printing import print_export
    from fedgraft.cli.progress import progress
    from fedgraft.edge_export.export import export_bundle, export_class_bank

    settings |= {"site_folder": site_folder, "images": images, "key": key}
    if golden_images is not None:
        settings["golden_images"] = golden_images
    if labels is not None:
        settings["labels"] = parse_labels(labels)
    encoder = [f"--{name.replace('_', '-')}" for name in settings if name not in ClassBankOptions.model_fields]
    if classes_for is not None and encoder:
        raise UserError(f"--classes-for keeps the encoder of a bundle; leave out {', '.join(encoder)}.")
    with progress(quiet=as_json) as observer, device_errors():
        if classes_for is None:
            written = export_bundle(run, out, BundleOptions.build(settings), observer)
        else:
            written = export_class_bank(run, classes_for, out, ClassBankOptions.build(settings), observer)
    if as_json:
        content = written.manifest.model_dump(mode="json")
        typer.echo(json.dumps({"out": str(out), "signer": written.signer.hex(), "manifest": content}))
    else:
        print_export(written)


@device_app.command("predict")
def device_predict(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...")],
    key: PublicKey = None,
    threads: Threads = None,
    as_json: Json = False,
    provider: Provider = "cpu",
) -> None:
    """Classify image files."""
    from fedgraft.device.commands import predict

    with device_errors():
        predict(bundle, images, key, threads, as_json, provider)


@device_app.command("bench")
def device_bench(
    bundle: BundlePath,
    images: Annotated[int, typer.Option(min=1, help="Number of passes.")] = 50,
    threads: Threads = None,
    spinning: Annotated[bool, typer.Option(help="Let idle threads busy-wait; not where cores are shared.")] = True,
    as_json: Json = False,
    provider: Provider = "cpu",
) -> None:
    """Measure latency, memory and size on this machine."""
    from fedgraft.device.commands import bench

    with device_errors():
        bench(bundle, images, threads, spinning, as_json, provider)


@device_app.command("verify")
def device_verify(bundle: BundlePath, key: PublicKey = None, as_json: Json = False, provider: Provider = "cpu") -> None:
    """Check every byte, the signature, and that this machine reproduces the exporter's embedding."""
    from fedgraft.device.commands import verify

    with device_errors():
        verify(bundle, key, as_json, provider)
