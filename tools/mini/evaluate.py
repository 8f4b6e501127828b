"""Zero-shot accuracy of a backbone on the embedded data sources: `python -m tools.mini.evaluate`."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.feature_store import FeatureStore, require_rows
from fedgraft.backbones.loading import load_backbone
from fedgraft.data.sources.source import open_source


def zero_shot(backbone: Backbone, source: str, cache: Path, seed: int = 0) -> dict[str, float]:
    """Accuracy in percent among all classes of a source, over all images and for each domain."""
    examples = open_source(source, seed)
    store = FeatureStore(cache, backbone)
    store.fill(examples.keys, examples.load)
    features = store.vectors()[require_rows(store, examples.keys)]
    texts = backbone.text.encode_classes(examples.class_names, examples.templates).numpy()
    right = (features @ texts.T).argmax(1) == examples.labels
    result = {"all": float(right.mean() * 100)}
    if len(examples.domain_names) > 1:
        for index, name in enumerate(examples.domain_names):
            result[name] = float(right[examples.domains == index].mean() * 100)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument(
        "--sources", nargs="+", default=["digits", "shapes:evaluation", "shapes:pretraining", "characters"]
    )
    args = parser.parse_args()
    backbone = load_backbone(args.backbone)
    with tempfile.TemporaryDirectory() as cache:
        for source in args.sources:
            figures = zero_shot(backbone, source, Path(cache))
            print(f"{source:<20}" + "  ".join(f"{name} {np.round(value, 1)} %" for name, value in figures.items()))


if __name__ == "__main__":
    main()
