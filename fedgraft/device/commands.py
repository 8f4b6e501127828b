"""The commands predict, bench, verify and agent of `fedgraft-device` and `fedgraft device`."""

import argparse
import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgraft.device.errors import DeviceError

if TYPE_CHECKING:
    from fedgraft.device.agent.live import LivePredictor


def predict(
    bundle: Path,
    images: list[Path],
    key: str | None = None,
    threads: int | None = None,
    as_json: bool = False,
    provider: str = "cpu",
) -> None:
    """Classify image files and print one line per image, or one JSON object for all.

    Args:
        bundle: a bundle, or the folder of an agent, whose current release then predicts and counts.
        provider: what computes; see `find_provider`.

    Raises:
        DeviceError: the bundle or an image cannot be used.
    """
    from PIL import Image

    from fedgraft.device.predictor import Predictor

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image reports such an image
    live = _live(bundle, threads)
    if live is not None and key is not None:
        raise DeviceError(f"The agent in {bundle} knows its publishers' keys; leave --key out.")
    if live is not None and provider != "cpu":
        raise DeviceError(f"The agent in {bundle} predicts on the CPU; leave --provider out.")
    predictor = live or Predictor(bundle, key=_key(key), threads=threads, provider=provider)
    answers = {}
    for image in images:
        answer = predictor.predict(image)
        answers[str(image)] = asdict(answer)
        if not as_json:
            text = f"{answer.label} {100 * answer.probability:.1f} %"
            print(f"{image}: unknown (nearest: {text})" if answer.is_unknown else f"{image}: {text}")
    if live is not None:
        live.close()
    if as_json:
        print(json.dumps(answers))


def _live(folder: Path, threads: int | None) -> "LivePredictor | None":
    """What predicts with an agent's folder, or None for a bundle."""
    if not (folder / "state.json").is_file():
        return None
    from fedgraft.device.agent.live import LivePredictor

    return LivePredictor(folder, threads=threads)


def bench(
    bundle: Path,
    images: int,
    threads: int | None,
    spinning: bool,
    as_json: bool = False,
    provider: str = "cpu",
) -> None:
    """Measure a bundle on this machine and print the figures; raises DeviceError if the bundle cannot be used."""
    from fedgraft.device.bench import bench as measure

    figures = asdict(measure(bundle, images, threads, spinning, provider))
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<17} {value:>10.2f}" if isinstance(value, float) else f"{name:<17} {value:>7}")


def verify(bundle: Path, key: str | None = None, as_json: bool = False, provider: str = "cpu") -> None:
    """Check every byte of a bundle and that this machine reproduces the exporter's embedding; print the result.

    Raises:
        DeviceError: a check fails.
    """
    from fedgraft.device.bundle import open_bundle
    from fedgraft.device.class_bank import ClassBank
    from fedgraft.device.predictor import Predictor

    opened = open_bundle(bundle, _key(key))
    for name in opened.manifest.files:
        opened.read(name)
    found: dict[str, Any] = {
        "bundle": str(bundle),
        "kind": opened.manifest.kind,
        "version": opened.manifest.version,
        "files": len(opened.manifest.files),
        "bytes": sum(entry.bytes for entry in opened.manifest.files.values()),
        "classes": len(ClassBank.read(opened).labels),
        "signer": opened.signer.hex(),
        "pinned": opened.pinned,
        "golden_cosine": None,
    }
    whole = opened.manifest.kind == "bundle"
    tested = Predictor(opened, remember=False, provider=provider).tested() if whole else None
    if tested is not None:
        figures = asdict(tested)
        found |= {"golden_cosine": figures.pop("cosine"), "golden": figures}
    if as_json:
        print(json.dumps(found))
        return
    print(f"{bundle}: {found['files']} files, {found['bytes']:,} bytes, {found['classes']} classes, all as signed.")
    if tested is not None:
        print(f"This machine reproduces the golden sample: cosine {tested.cosine:.6f}.")
        if tested.images:
            same = f"{tested.agreement:.1f} % with the exporter's class, centred cosine {tested.centred_cosine:.6f}"
            print(f"And {tested.images} golden images: {same}.")
        if tested.warning:
            print(f"Warning: {tested.warning}")
    if opened.pinned:
        print(f"Signed by the required key {found['signer']}.")
    else:
        print(f"Signed by {found['signer']}, the key in the bundle itself; pin the signer with --key.")


def agent(
    server: str,
    ca: Path | None,
    token: str | None,
    dir: Path,
    once: bool = False,
    interval: float = 300.0,
    key: str | None = None,
    share_embeddings: bool = False,
) -> None:
    """Keep a device at the version that its fleet's registry names; see `run_agent`.

    Raises:
        DeviceError: it cannot enrol, or what keeps it from that version; or grpcio is not installed.
    """
    try:
        from fedgraft.device.agent.service import run_agent
    except ImportError as error:
        raise DeviceError(f"The agent needs grpcio: pip install 'fedgraft-device[agent]' ({error}).") from error
    run_agent(server, ca, token, dir, once, interval, key, share_embeddings)


def main() -> None:
    """The command `fedgraft-device`; a mistake in the input prints one sentence and exits with code 2."""
    arguments = vars(_parser().parse_args())
    command = arguments.pop("command")
    try:
        command(**arguments)
    except DeviceError as error:
        print(f"fedgraft-device: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedgraft-device", description="Classify images with a fedgraft bundle.")
    commands = parser.add_subparsers(required=True, metavar="predict | bench | verify | agent")
    predicting = commands.add_parser("predict", help="classify image files")
    predicting.set_defaults(command=predict)
    benching = commands.add_parser("bench", help="measure a bundle on this machine")
    benching.set_defaults(command=bench)
    verifying = commands.add_parser("verify", help="check every byte of a bundle and its signature")
    verifying.set_defaults(command=verify)
    for each in (predicting, benching, verifying):
        each.add_argument("bundle", type=Path, help="a directory or a zip; for predict, an agent's folder as well")
        each.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
        each.add_argument("--provider", default="cpu", help="what computes, by onnxruntime's name, such as cpu or cuda")
    predicting.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    for each in (predicting, verifying):
        each.add_argument("--key", help="the required signer's public key: a PEM file or 64 hexadecimal digits")
    for each in (predicting, benching):
        each.add_argument("--threads", type=_threads, help="onnxruntime threads; one per core by default")
    benching.add_argument("--images", type=int, default=50, help="number of passes")
    benching.add_argument(
        "--no-spinning", dest="spinning", action="store_false", help="let idle threads sleep, where cores are shared"
    )
    following = commands.add_parser("agent", help="keep this device at the version that its fleet's registry names")
    following.set_defaults(command=agent)
    following.add_argument("--server", required=True, metavar="HOST:PORT", help="the registry")
    following.add_argument("--ca", type=Path, metavar="FILE", help="the fleet's ca.pem; kept once the device enrolled")
    following.add_argument(
        "--token", default=os.environ.get("FEDGRAFT_TOKEN"), help="to enrol, once; or in FEDGRAFT_TOKEN"
    )
    following.add_argument("--dir", type=Path, required=True, help="the device's folder")
    following.add_argument("--once", action="store_true", help="look and report a single time")
    following.add_argument("--interval", type=float, default=300.0, metavar="SECONDS", help="between two looks")
    following.add_argument("--key", help="a publisher's public key that must be among the fleet's")
    following.add_argument(
        "--share-embeddings", action="store_true", help="report embeddings of some images that are called unknown"
    )
    return parser


def _threads(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _key(text: str | None) -> bytes | None:
    from fedgraft.device.ed25519 import read_public_key

    return None if text is None else read_public_key(text)
