"""A real deployment on one machine: a server and three sites in processes of their own, over TLS with node keys.

Shows: what `fedgraft up` does, with each site's images in its own folder; then a bundle made at one of the sites, from
personal parameters that never left it.
Takes: about two minutes on two cores; with --smoke, half of it, because processes must start.

    python examples/deployment.py                   # on handwritten digits
    python examples/deployment.py --data PHOTOS     # on your own, class/image
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedgraft.data.sources.source import open_source
from fedgraft.deployment.local import up
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.options import BundleOptions


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploy, run, stop, and export at the first site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder class/image; digits are written into one unless given")
    parser.add_argument("--out", type=Path, default=Path("runs/deployment"))
    parser.add_argument("--smoke", action="store_true", help="two sites, one round, few images")
    given = parser.parse_args(arguments)
    images = given.data or written_digits(given.out / "digits", 8 if given.smoke else 60)
    settings = {"method": "fedpgp", "sites": 2 if given.smoke else 3, "rounds": 1 if given.smoke else 5}
    summary = up(images, settings, given.out / "up", lambda sites: None)
    print(f"Accuracy at the sites {summary['metrics']['accuracy']:.1f} %; {given.out / 'up' / 'run' / 'report.html'}")
    site = sorted((given.out / "up" / "sites").iterdir())[0]
    few = {"most_images": 16, "force": True} if given.smoke else {}
    options = BundleOptions.build({"site_folder": site, "key": given.out / "signing.key", **few})
    print(
        f"Wrote {export_bundle(given.out / 'up' / 'run', given.out / 'bundle', options).out} for the site {site.name}"
    )


def written_digits(folder: Path, each: int) -> Path:
    """Some handwritten digits of each class as class/image."""
    examples = open_source("digits", 0)
    for label, name in enumerate(examples.class_names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for position in (examples.labels == label).nonzero()[0][:each]:
            examples.load(int(position)).save(folder / name / f"{position}.png")
    return folder


if __name__ == "__main__":
    main()
