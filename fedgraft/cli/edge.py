"""`fedgraft export` and `fedgraft device ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer

device_app = typer.Typer(no_args_is_help=True, help="A bundle as a device runs it: predict, bench, verify.")
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory or a zip.")]
PublicKey = Annotated[
    str | None, typer.Option(help="The public key that must have signed: a PEM file or 64 hexadecimal digits.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of onnxruntime.", show_default="as many as cores")]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    out: Annotated[Path, typer.Option(help="A new directory, or a name that ends in .zip.")],
    site: Annotated[
        str, typer.Option(help="The number of a site, or global for the prompt that all share.")
    ] = "global",
    sparsity: Annotated[float, typer.Option(help="Share of the image tower's weights to remove.")] = 0.0,
    ticket: Annotated[str, typer.Option(help="natural or robust to draw one, or a ticket's folder.")] = "natural",
    pattern: Annotated[str, typer.Option(help="structured, rows, n:m, unstructured.")] = "structured",
    quantize: Annotated[str, typer.Option(help="none, int8, fp16.")] = "none",
    labels: Annotated[
        str | None, typer.Option(help="Other classes: names with commas, or a file.", show_default="the run's")
    ] = None,
    classes_for: Annotated[
        Path | None, typer.Option(help="A bundle whose encoder stays: write a class bank for it, and nothing else.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="The domain that was left out, where there are several.")] = None,
    site_folder: Annotated[Path | None, typer.Option(help="A deployed site's folder, on its own machine.")] = None,
    images: Annotated[Path | None, typer.Option(help="Measure on these, class/image, not on the run's.")] = None,
    retune: Annotated[int, typer.Option(help="Epochs of the site's prompt on the ticket, with its own images.")] = 0,
    max_novel_drop: Annotated[float, typer.Option(help="Percentage points of novel accuracy it may lose.")] = 5.0,
    unknown_rate: Annotated[float, typer.Option(help="Share of known images that may be called unknown.")] = 0.05,
    bundle_version: Annotated[int | None, typer.Option(help="Devices never go back.", show_default="1")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the manifest.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="The signing key, made where missing.", show_default="the user's own")
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Add a page that runs the bundle in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write a bundle that a gate refuses.")] = False,
    as_json: Json = False,
) -> None:
    """Write a signed bundle for devices: ONNX image encoder, class bank, labels, preprocessing."""
    from fedgraft.cli.progress import progress
    from fedgraft.edge_export.export import ExportOptions
    from fedgraft.edge_export.export import export as write
    from fedgraft.edge_export.onnx_model import checked_quantization
    from fedgraft.edge_export.towers import TicketChoice
    from fedgraft.edge_export.trained_run import parse_labels

    options = ExportOptions(
        site=site,
        fold=fold,
        site_folder=site_folder,
        images=images,
        labels=None if labels is None else parse_labels(labels),
        ticket=TicketChoice(ticket, sparsity, pattern),
        quantization=checked_quantization(quantize),
        classes_for=classes_for,
        retune_epochs=retune,
        max_novel_drop=max_novel_drop,
        unknown_rate=unknown_rate,
        version=bundle_version,
        licence=licence,
        key=key,
        force=force,
        web=web,
    )
    with progress(quiet=as_json) as observer:
        written = write(run, out, options, observer)
    content = written.manifest.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps({"out": str(out), "signer": written.signer.hex(), "manifest": content}))
        return
    from fedgraft.cli.printing import print_export

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

    predict(bundle, images, key, threads, as_json)


@device_app.command("bench")
def device_bench(
    bundle: BundlePath,
    images: Annotated[int, typer.Option(min=1, help="How many passes.")] = 50,
    threads: Threads = None,
    spinning: Annotated[bool, typer.Option(help="Whether threads wait busily; not where cores are shared.")] = True,
    as_json: Json = False,
) -> None:
    """Latency percentiles, memory and size on this machine."""
    from fedgraft.device.commands import bench

    bench(bundle, images, threads, spinning, as_json)


@device_app.command("verify")
def device_verify(bundle: BundlePath, key: PublicKey = None, as_json: Json = False) -> None:
    """Check every byte, the signature, and that this machine computes what the exporter did."""
    from fedgraft.device.commands import verify

    verify(bundle, key, as_json)
