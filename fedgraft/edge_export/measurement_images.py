"""Which real images an export is measured on, and which its probabilities are fitted on: never the same test images.

Parity of ONNX and torch needs images and no labels. What the bundle keeps of the run's generalization is measured on
the run's test images. Temperature and threshold are fitted on images that no site trained on and no scope tests; where
there are too few of them, on training images, which make a prompt look surer than it is, and the manifest says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.runs.site_folder import SiteFolder
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.sources.folder import open_own
from fedgraft.data.protocols.protocol import Fold, SiteShare, own_deal
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.trained_run import Source
from fedgraft.core.errors import UserError

GATES = ("novel", "target", "personal")
"""The scopes that say most of what a federation preserves, the first that a run has."""
_ENOUGH = 64
_NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True)
class Gate:
    """Test images of one scope, as positions in the examples, and the classes they are told apart among."""

    scope: str
    positions: IntArray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ExportImages:
    """The images of an export.

    Attributes:
        examples: with labels as positions in their class names.
        calibration: positions to fit on.
        held_out: whether nobody trained on those.
        gate: what generalization is measured on; None where there are no test images.
        others: more images, whose labels nobody looks at.
        training: those that the site, or all sites, trained on.
    """

    examples: Examples
    calibration: IntArray
    held_out: bool
    gate: Gate | None
    others: IntArray
    training: IntArray

    def load(self, positions: Iterable[int]) -> list[Image.Image]:
        """RGB images."""
        return [self.examples.load(int(position)) for position in positions]

    def label_names(self, positions: IntArray) -> list[str]:
        """The class names of images."""
        return [self.examples.class_names[label] for label in self.examples.labels[positions]]


def run_images(source: Source, most: int) -> ExportImages:
    """The images of a simulated run.

    Args:
        most: of each of calibration, gate and others; a fixed part of more.

    Raises:
        UserError: the run's images are not there any more, or at the sites.
    """
    if source.data is None:
        raise UserError(
            f"The images of the run in {source.run} are at its sites; export at a site with --site-folder, or give "
            "--images FOLDER with some of the same kind."
        )
    config = source.config
    examples = open_source(config.data, config.seed, config.domains)
    if not np.array_equal(examples.keys, source.data.keys):
        raise UserError(f"The images of {config.data!r} are not those of the run in {source.run} any more.")
    fold = source.deal.folds[source.fold]
    shares = fold.sites if source.site is None else (fold.sites[source.site],)
    return _of_fold(examples, fold, fold.sites, shares, most)


def site_images(site: SiteFolder, config: RunConfig, most: int) -> ExportImages:
    """A deployed site's own images.

    Raises:
        UserError: its folder is not as it should be.
    """
    examples = open_own(site.data, config.class_names, site.settings.labels)
    fold = own_deal(examples, config).folds[0]
    return _of_fold(examples, fold, fold.sites, fold.sites, most)


def folder_images(folder: Path, most: int) -> ExportImages:
    """Images that the exporter gives, class/image, which nobody trained on.

    Raises:
        UserError: there are none.
    """
    examples = open_source(f"folder:{folder}", 0)
    everything = np.arange(len(examples))
    return ExportImages(examples, spread(everything, most), True, None, _NOBODY, _NOBODY)


def spread(positions: IntArray, most: int) -> IntArray:
    """At most so many positions, evenly over all."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def _of_fold(
    examples: Examples, fold: Fold, everyone: tuple[SiteShare, ...], shares: tuple[SiteShare, ...], most: int
) -> ExportImages:
    _, contents = np.unique(examples.keys, axis=0, return_inverse=True)
    contents = contents.reshape(-1)  # one number for each distinct image, so that no copy slips through
    trained = _joined(share.train for share in everyone)
    tested = _joined(positions for share in everyone for positions in share.tests.values())
    fresh = np.flatnonzero(~np.isin(contents, contents[np.concatenate([trained, tested])]))
    held_out = len(fresh) >= _ENOUGH
    own = _joined(share.train for share in shares)
    own = own[~np.isin(contents[own], contents[tested])]
    scope = next((scope for name in GATES for scope in fold.scopes if scope.name == name), None)
    gate = None
    if scope is not None:
        positions = _joined(share.tests[scope.name] for share in shares)
        if len(positions):
            gate = Gate(scope.name, spread(positions, most), tuple(examples.class_names[c] for c in scope.classes))
    return ExportImages(
        examples=examples,
        calibration=spread(fresh if held_out else own, most),
        held_out=held_out,
        gate=gate,
        others=spread(tested, most),
        training=own,
    )


def _joined(parts: Iterable[IntArray]) -> IntArray:
    return np.unique(np.concatenate([_NOBODY, *parts]))
