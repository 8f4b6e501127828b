"""A first run from end to end: a comparison on embedded data, one site's bundle, and an image that it classifies.

Five sites hold twelve classes each of shapes, drawn in styles that pretraining never saw. No method is favoured by
name: the one exported is the one with the best harmonic mean, and what is said of it is read from the comparison.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.device.bundle import open_bundle
from fedgraft.device.predictor import Prediction, Predictor
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.options import BundleOptions
from fedgraft.methods.plan import Plan
from fedgraft.reports import write_report
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.comparison import Entry, compare
from fedgraft.simulation.engine import Resources

ENTRIES = ("zeroshot", "local", "promptfl", "fedpgp", "fedit+anchored(drift=0.08)")
SETTINGS: dict[str, Any] = {"data": "shapes", "sites": 5, "rounds": 10, "shots": 16, "schedule": "cosine"}
"""A rate that falls to zero: another thread count then moves figures by less than a point, instead of three."""
SITE = 3
_PROTOCOL = {"protocol": "base-to-novel"}
"""Fixed, because what was gained and kept are metrics of this protocol."""
_BUNDLE, _IMAGE = "bundle", "image.png"


@dataclass(frozen=True)
class Shown:
    """What the quick start made.

    Attributes:
        comparison: what comparison.json holds.
        best: the entry with the best harmonic mean, which was exported.
        image: a test image of the site's own, and `label` what it shows.
        sentences: what was gained, what was kept, and where everything is.
    """

    comparison: dict[str, Any]
    best: str
    report: Path
    bundle: Path
    image: Path
    label: str
    prediction: Prediction
    sentences: tuple[str, str, str]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def quickstart(
    out: Path | str = "runs/quickstart",
    *,
    settings: dict[str, Any] | None = None,
    entries: tuple[str, ...] = ENTRIES,
    seeds: tuple[int, ...] = (0,),
    site: int = SITE,
    resources: Resources | None = None,
    observer: Observer | None = None,
) -> Shown:
    """Compare, export and predict; what an earlier, stopped call has finished is kept.

    Args:
        settings: of the comparison, in place of some of `SETTINGS`.
        entries: of the comparison; one must train nothing, so that there is something to measure a gain against.
        site: whose bundle is written, from the run with the first seed.

    Raises:
        UserError: there is a mistake in the settings, the directory holds another comparison, or the export loses too
            much of what the federation has preserved.
    """
    observer, out = observer or Observer(), Path(out)
    trained = [entry for entry in entries if METHODS.load(Entry.parse(entry).method).trains]
    if not trained or len(trained) == len(entries):
        raise UserError(
            "A quick start needs an entry that trains, and one that does not, such as zeroshot, to compare with."
        )
    comparison = compare(
        {**SETTINGS, **(settings or {}), **_PROTOCOL},
        list(entries),
        list(seeds),
        out,
        resume=True,
        resources=resources,
        observer=observer,
    )
    report = write_report(out)
    results = {entry["method"]: _means(entry) for entry in comparison["methods"]}
    best = max(trained, key=lambda entry: results[entry]["hm"])
    untrained = next(entry for entry in entries if entry not in trained)
    run = out / Entry.parse(best).run_name(seeds[0])
    bundle = _bundle(run, out / _BUNDLE, site, observer)
    image, label = _test_image(run, site, out / _IMAGE)
    prediction = Predictor(bundle, threads=1, spinning=False).predict(image)
    sentences = (
        _gained(results, best, untrained),
        _kept(results, best, untrained, bundle),
        _where(report, bundle, best),
    )
    return Shown(comparison, best, report, bundle, image, label, prediction, sentences)


def _bundle(run: Path, out: Path, site: int, observer: Observer) -> Path:
    """The bundle of a site; the same run gives the same bundle, so that one that is there is kept."""
    if not out.exists():
        export_bundle(run, out, BundleOptions.build({"site": str(site)}), observer)
    made_from = open_bundle(out).manifest.content["run"]
    if (made_from["name"], made_from["site"]) != (run.name, str(site)):
        raise UserError(
            f"The bundle {out} is of {made_from['name']}, site {made_from['site']}, and now {run.name}, site {site} is "
            "the one to export; remove it, or give another --out."
        )
    return out


def _test_image(run: Path, site: int, out: Path) -> tuple[Path, str]:
    """A test image of one of the site's own classes, written as a file, and its class."""
    directory = RunDirectory(run)
    examples = Plan.of(directory.config()).open_examples()
    fold = directory.split.folds[0]
    position = int(fold.sites[site].tests[fold.scopes[0].name][0])
    examples.load(position).resize((192, 192), Image.Resampling.NEAREST).save(out)
    return out, examples.class_names[examples.labels[position]]


def _means(entry: dict[str, Any]) -> dict[str, float]:
    return {key: statistics["mean"] for key, statistics in entry["metrics"].items()}


def _gained(results: dict[str, dict[str, float]], best: str, untrained: str) -> str:
    own, before = results[best]["local"], results[untrained]["local"]
    return (
        f"Gained: {own:.1f} % on a site's own classes with {best}, {own - before:+.1f} points over the frozen backbone "
        f"({untrained} has {before:.1f} %)."
    )


def _kept(results: dict[str, dict[str, float]], best: str, untrained: str, bundle: Path) -> str:
    novel, before = results[best]["novel"], results[untrained]["novel"]
    worst = min(results, key=lambda entry: results[entry]["novel"])
    content = open_bundle(bundle).manifest.content
    parity = content["parity"]["top1_agreement"]
    return (
        f"Kept: {novel:.1f} % on novel classes that no site trained on, {novel - before:+.1f} points ({worst} has "
        f"{results[worst]['novel']:.1f} %); the bundle agrees with torch on {parity:.1f} % of the images."
    )


def _where(report: Path, bundle: Path, best: str) -> str:
    entry = Entry.parse(best)
    strategy = f' --strategy "{entry.strategy}"' if entry.strategy else ""
    return (
        f"Next: open {report}; fedgraft device verify {bundle}; your own images, a folder for each class: fedgraft "
        f"simulate --method {entry.method}{strategy} --data folder:PHOTOS --sites 5 --out runs/photos"
    )
