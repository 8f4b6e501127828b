"""From a run to a device and to a browser: train, export in two number formats, verify, predict, measure.

Shows: bundles of one site in float32 and int8, other labels for an encoder that a device already has, and with --web a
page that classifies images in a browser (it needs npm once, for onnxruntime-web).
Takes: about a minute on two cores; with --smoke, seconds.

    python examples/to_a_device.py --web && python -m http.server --directory runs/to-a-device/none
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedgraft import RunConfig, simulate
from fedgraft.data.sources.source import open_source
from fedgraft.device.bench import bench
from fedgraft.device.predictor import Predictor
from fedgraft.edge_export.export import export_bundle, export_class_bank
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with personal prompts, and give a device what the first site learnt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/to-a-device"))
    parser.add_argument("--web", action="store_true", help="add the page for browsers")
    parser.add_argument("--smoke", action="store_true", help="two sites and one round")
    given = parser.parse_args(arguments)
    run, key = given.out / "run", given.out / "signing.key"
    sites, rounds, shots = (2, 1, 2) if given.smoke else (5, 10, 64)
    config = RunConfig(method="fedpgp", data="digits", sites=sites, rounds=rounds, shots=shots)
    simulate(config, run, resume=run.exists())
    image = open_source("digits", 0).load(7)
    for quantize in ("none", "int8"):
        chosen = {"site": "0", "quantize": quantize, "web": given.web, "key": key, "force": given.smoke}
        chosen["most_images"] = 16 if given.smoke else 256
        bundle = export_bundle(run, given.out / quantize, BundleOptions.build(chosen)).out
        predictor, speed = Predictor(bundle, threads=1), bench(bundle, 5, 1, False)
        print(f"{quantize}: golden cosine {predictor.self_test():.6f}, {predictor.predict(image).label}; {speed}")
    other = ClassBankOptions.build({"labels": ("a zero", "something else"), "site": "0", "key": key, "force": True})
    export_class_bank(run, given.out / "none", given.out / "labels", other)
    predictor = Predictor(given.out / "none", threads=1)
    predictor.swap_classes(given.out / "labels")
    print(f"other labels: {predictor.predict(image).probabilities}")


if __name__ == "__main__":
    main()
