"""The real images that an export is measured on, and others that its probabilities are fitted on.

Agreement of ONNX and torch needs images but no labels. Generalization is measured on the run's test images. Temperature
and threshold are fitted on images that no site trained on and no scope tests; where there are too few of them, on
training images, on which a prompt is overconfident, and the manifest says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.sources.folder import open_site_images
from fedgraft.data.sources.source import open_source
from fedgraft.data.split import Fold, SiteShare, content_groups, joined
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.runs.site_folder import SiteFolder

_ENOUGH = 64
"""The fewest held-out images that a temperature is fitted on."""
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Gate:
    """Test images of the scope that a bundle must preserve: positions in the examples, and the candidate classes.

    Attributes:
        classes: ascending positions in the run's class names, of which several may have one name.
    """

    scope: str
    positions: IntArray
    classes: tuple[int, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class MeasurementImages:
    """The images of an export.

    Attributes:
        examples: with labels as positions in their class names.
        calibration: positions to fit temperature and threshold on.
        held_out: whether nobody trained on those.
        gate: what generalization is measured on; None where there are no test images.
        others: more images, used without labels.
        training: what the site, or all sites, trained on.
        quantization: what ranges of activations may be measured on: training images, or some of the user's own, which
            are then measured on no more.
    """

    examples: Examples
    calibration: IntArray
    held_out: bool
    gate: Gate | None
    others: IntArray
    training: IntArray
    quantization: IntArray

    def load(self, positions: Iterable[int]) -> list[Image.Image]:
        """RGB images."""
        return [self.examples.load(int(position)) for position in positions]

    def label_names(self, positions: IntArray) -> list[str]:
        """The class names of images."""
        return [self.examples.class_names[label] for label in self.examples.labels[positions]]


def run_images(trained: TrainedRun, most: int) -> MeasurementImages:
    """The images of a simulated run.

    Args:
        most: of each of calibration, gate and others; a fixed subset of more.

    Raises:
        UserError: the run's images have changed, or are at its sites.
    """
    config, run = trained.plan.config, trained.directory.path
    if trained.plan.protocol.deployed:
        raise UserError(
            f"The images of the run in {run} are at its sites; export at a site with --site-folder, or give similar "
            "images with --images FOLDER."
        )
    examples = trained.plan.open_examples()
    if not np.array_equal(examples.keys, trained.split.keys):
        raise UserError(f"The images of {config.data!r} have changed since the run in {run}.")
    fold = trained.split.folds[trained.fold]
    shares = fold.sites if trained.site is None else (fold.sites[trained.site],)
    return _of_fold(examples, fold, trained.plan.protocol.preserved, shares, most)


def site_images(trained: TrainedRun, site: SiteFolder, most: int) -> MeasurementImages:
    """A deployed site's own images; raises UserError if its folder of images does not suit the run."""
    leave_out = site.settings.on_bad_image == "skip"
    examples = open_site_images(site.data, trained.split.class_names, site.settings.labels, site.cache, leave_out)
    fold = trained.plan.split(examples).folds[0]
    return _of_fold(examples, fold, trained.plan.protocol.preserved, fold.sites, most)


def folder_images(folder: Path, most: int, quantized: int = 0) -> MeasurementImages:
    """The user's own images, class/image, which nobody trained on; raises UserError if there are none.

    Args:
        quantized: how many are put aside for `quantization`, at most a quarter of them.
    """
    examples = open_source(f"folder:{folder}", 0)
    everything = np.arange(len(examples))
    aside = evenly(everything, min(quantized, len(everything) // 4))
    left = np.setdiff1d(everything, aside)
    return MeasurementImages(examples, evenly(left, most), True, None, _NONE, _NONE, aside)


def evenly(positions: IntArray, most: int) -> IntArray:
    """At most so many of some positions, evenly spaced."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def _of_fold(
    examples: Examples, fold: Fold, preserved: str, shares: tuple[SiteShare, ...], most: int
) -> MeasurementImages:
    groups = content_groups(examples)  # an image counts with all its copies
    trained = joined(share.train for share in fold.sites)
    tested = joined(positions for share in fold.sites for positions in share.tests.values())
    fresh = np.flatnonzero(~np.isin(groups, groups[np.concatenate([trained, tested])]))
    held_out = len(fresh) >= _ENOUGH
    own = joined(share.train for share in shares)
    own = own[~np.isin(groups[own], groups[tested])]
    return MeasurementImages(
        examples=examples,
        calibration=evenly(fresh if held_out else own, most),
        held_out=held_out,
        gate=_gate(examples, fold, preserved, shares, most),
        others=evenly(tested, most),
        training=own,
        quantization=own,
    )


def _gate(examples: Examples, fold: Fold, preserved: str, shares: tuple[SiteShare, ...], most: int) -> Gate | None:
    scope = next(scope for scope in fold.scopes if preserved in (scope.name, scope.kind))
    positions = joined(share.tests[scope.name] for share in shares)
    if not len(positions):
        return None
    names = tuple(examples.class_names[label] for label in scope.classes)
    return Gate(scope.name, evenly(positions, most), scope.classes, names)
