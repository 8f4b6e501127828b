"""What `photo` knows without training: zero-shot accuracy on three folders of photographs, domain by domain.

`python -m benchmarks.photo --data DIR` reads DIR/office_caltech10, DIR/pacs and DIR/caltech101, each in ImageFolder's
layout or as domain/class/image. Every image is a test image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fedgraft.backbones import best_device, load_backbone
from fedgraft.backbones.feature_store import FeatureStore, require_rows
from fedgraft.core.files import cache_root
from fedgraft.data.sources.source import find_source

FOLDERS = ("office_caltech10", "pacs", "caltech101")


def accuracies(folder: Path, backbone_name: str) -> dict[str, float]:
    """Percent of right answers on all images of a folder, and on each domain's."""
    source, options = find_source(f"folder:{folder}", {})
    examples = source.open(options, 0)
    backbone = load_backbone(backbone_name, device=best_device())
    store = FeatureStore(cache_root(), backbone)
    store.fill(examples.keys, examples.load)
    features = store.features(require_rows(store, examples.keys))
    classes = backbone.text.encode_classes(examples.class_names, examples.templates).cpu().numpy()
    right = (features @ classes.T).argmax(1) == examples.labels
    found = {"all": 100 * right.mean()}
    if len(examples.domain_names) > 1:
        names = enumerate(examples.domain_names)
        found |= {name: 100 * right[examples.domains == number].mean() for number, name in names}
    return {name: float(np.asarray(value)) for name, value in found.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the three folders")
    parser.add_argument("--backbone", default="photo")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    print("| data | all images | domains |\n|---|---|---|")
    for name in FOLDERS:
        found = accuracies(args.data / name, args.backbone)
        domains = ", ".join(f"{domain} {value:.1f}" for domain, value in found.items() if domain != "all")
        print(f"| {name} | {found['all']:.1f} | {domains} |", flush=True)


if __name__ == "__main__":
    main()
