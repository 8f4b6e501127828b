"""`fedgraft export` and `fedgraft device ...`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.settings import Json
from fedgraft.core.errors import UserError

device_app = typer.Typer(no_args_is_help=True, help="Run a bundle as a device does: predict, bench, verify.")
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory or a zip.")]
PublicKey = Annotated[
    str | None, typer.Option(help="The required signer's public key: a PEM file or 64 hexadecimal digits.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of onnxruntime.", show_default="one per core")]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    out: Annotated[Path, typer.Option(help="A new directory, or a name that ends in .zip.")],
    site: Annotated[
        str, typer.Option(help="The number of a site, or global for the prompt that all share.")
    ] = "global",
    sparsity: Annotated[float, typer.Option(help="Fraction of the image tower's weights to remove.")] = 0.0,
    ticket: Annotated[str, typer.Option(help="natural or robust to draw one, or a ticket's folder.")] = "natural",
    pattern: Annotated[str, typer.Option(help="structured, rows, n:m, unstructured.")] = "structured",
    quantize: Annotated[str, typer.Option(help="none, int8, fp16.")] = "none",
    labels: Annotated[
        str | None, typer.Option(help="Other classes: names separated by commas, or a file.", show_default="the run's")
    ] = None,
    classes_for: Annotated[
        Path | None, typer.Option(help="A bundle whose encoder stays: write only a class bank for it.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="The domain left out, for a run with several folds.")] = None,
    site_folder: Annotated[Path | None, typer.Option(help="A deployed site's folder, on its own machine.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images class/image to measure on, not the run's own.")] = None,
    retune: Annotated[int, typer.Option(help="Epochs of training the site's prompt on the ticket.")] = 0,
    max_novel_drop: Annotated[float, typer.Option(help="Percentage points of novel accuracy it may lose.")] = 5.0,
    unknown_rate: Annotated[float, typer.Option(help="Fraction of known images that may be called unknown.")] = 0.05,
    bundle_version: Annotated[int | None, typer.Option(help="Devices never go back.", show_default="1")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the manifest.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="The signing key, created if missing.", show_default="the user's own")
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Add a page that runs the bundle in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write a bundle that a gate refuses.")] = False,
    as_json: Json = False,
) -> None:
    """Write a signed bundle for devices: ONNX image encoder, class bank, labels, preprocessing."""
    from fedgraft.cli.printing import print_export
    from fedgraft.cli.progress import progress
    from fedgraft.edge_export.export import export_bundle, export_class_bank
    from fedgraft.edge_export.options import BundleOptions, ClassBankOptions, parse_labels
    from fedgraft.edge_export.towers import TicketChoice

    bank = ClassBankOptions(
        site=site,
        fold=fold,
        site_folder=site_folder,
        images=images,
        labels=None if labels is None else parse_labels(labels),
        max_novel_drop=max_novel_drop,
        unknown_rate=unknown_rate,
        version=bundle_version,
        licence=licence,
        key=key,
        force=force,
    )
    encoder = {
        "ticket": TicketChoice(ticket, sparsity, pattern),
        "quantization": quantize,
        "retune_epochs": retune,
        "web": web,
    }
    options = BundleOptions(**vars(bank), **encoder)  # type: ignore[arg-type]
    if classes_for is not None and options != BundleOptions(**vars(bank)):
        raise UserError(
            "--classes-for keeps the encoder of a bundle; leave out --sparsity, --ticket, --pattern, --quantize, "
            "--retune and --web."
        )
    with progress(quiet=as_json) as observer, device_errors():
        if classes_for is None:
            written = export_bundle(run, out, options, observer)
        else:
            written = export_class_bank(run, classes_for, out, bank, observer)
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
) -> None:
    """Classify image files."""
    from fedgraft.device.commands import predict

    with device_errors():
        predict(bundle, images, key, threads, as_json)


@device_app.command("bench")
def device_bench(
    bundle: BundlePath,
    images: Annotated[int, typer.Option(min=1, help="Number of passes.")] = 50,
    threads: Threads = None,
    spinning: Annotated[bool, typer.Option(help="Let idle threads busy-wait; not where cores are shared.")] = True,
    as_json: Json = False,
) -> None:
    """Measure latency, memory and size on this machine."""
    from fedgraft.device.commands import bench

    with device_errors():
        bench(bundle, images, threads, spinning, as_json)


@device_app.command("verify")
def device_verify(bundle: BundlePath, key: PublicKey = None, as_json: Json = False) -> None:
    """Check every byte, the signature, and that this machine reproduces the exporter's embedding."""
    from fedgraft.device.commands import verify

    with device_errors():
        verify(bundle, key, as_json)


@contextmanager
def device_errors() -> Iterator[None]:
    """Errors of the device runtime, which knows no other room, as mistakes in the input."""
    from fedgraft.device.errors import DeviceError

    try:
        yield
    except DeviceError as error:
        raise UserError(str(error)) from error
