"""An export on its way: the run's prompt and images at its start, gates, manifest and signature at its end."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from PIL import Image

from fedgraft.backbones.abilities import Needs
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.edge_export import bundle_writer, measure
from fedgraft.edge_export.bundle_manifest import (
    BackboneRecord,
    BundleManifest,
    CutsRecord,
    GoldenRecord,
    ParityRecord,
    RunRecord,
    TargetRecord,
)
from fedgraft.edge_export.cutting import Cut
from fedgraft.edge_export.dense_tower import ExportedTower
from fedgraft.edge_export.encoder import Encoder
from fedgraft.edge_export.measurement_images import (
    Gate,
    MeasurementImages,
    evenly,
    folder_images,
    run_images,
    site_images,
)
from fedgraft.edge_export.number_formats import find_format
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions
from fedgraft.edge_export.parity import FloatArray, onnx_embeddings
from fedgraft.edge_export.retune import retune
from fedgraft.edge_export.signing import default_key, public_bytes, signing_key
from fedgraft.edge_export.trained_run import TrainedRun, class_features, features_of
from fedgraft.methods.method import Method
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder

_PACKAGES = ("fedgraft", "torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written, and the public key that verifies it."""

    out: Path
    manifest: BundleManifest
    signer: bytes


class Draft:
    """What both exports share: the run's prompt and images at the start, gates, manifest and signature at the end."""

    def __init__(self, run: Path, out: Path, options: ClassBankOptions, observer: Observer, needs: Needs) -> None:
        bundle_writer.check_out(out)
        self._out, self._options, self._observer = out, options, observer
        _require_exportable(run)
        self.trained = TrainedRun.open(run, options.site, options.fold, options.site_folder, needs)
        names = self.trained.split.class_names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"Several classes of the run in {run} have the name {twice!r}, and a bundle tells classes apart by "
                "name; train on classes whose names differ."
            )
        self.run_adapter = self.trained.adapter(names)
        self._labels = options.labels or names
        if self.run_adapter.class_specific:
            self._labels = self._trained_labels(options.labels)
        own = self.run_adapter.class_specific or self._labels == names
        self.adapter = self.run_adapter if own else self.trained.adapter(self._labels)
        quantized = find_format(options.quantize).calibration_images if isinstance(options, BundleOptions) else 0
        self._images = _images(self.trained, options, quantized)
        self._preprocessing = measure.device_preprocessing(self.trained.backbone)
        gate = self._images.gate
        if gate is not None and self.run_adapter.class_specific and not set(gate.class_names) <= set(self._labels):
            gate = None
        self._gate = None if gate is None else (gate, features_of(self.run_adapter, gate.classes).numpy())
        self._retuned_epochs = 0
        self.targets: list[TargetRecord] = []

    def _trained_labels(self, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
        """The classes that were trained on, or those of them that are wanted: no other has a context worth keeping.

        Raises:
            UserError: a wanted label was not trained on.
        """
        split = self.trained.split
        trained = tuple(split.class_names[label] for label in split.folds[self.trained.fold].train_classes)
        if unknown := [label for label in wanted or () if label not in trained]:
            raise UserError(
                f"The run learnt a context for each class, and none for {unknown[0]!r}; its classes are "
                f"{', '.join(trained)}."
            )
        left = len(split.class_names) - len(trained)
        if wanted is None and left:
            self._observer.on_notice(
                f"The run learnt a context for each class: the bundle keeps the {len(trained)} classes that were "
                f"trained on and leaves out {left}."
            )
        return wanted or trained

    @cached_property
    def bank(self) -> FloatArray:
        """The class bank (C, dim), after any re-tuning."""
        features: FloatArray = class_features(self.adapter, self._labels).numpy()
        return features

    def retune(self, tower: ExportedTower, epochs: int) -> None:
        """Train the prompt on the ticket for the run's classes, and carry it over to other labels."""
        self._observer.on_notice(f"Re-tuning the prompt on the ticket for {epochs} epochs.")
        retune(self.trained, self.run_adapter, tower, self._images, epochs)
        self._retuned_epochs = epochs
        if self.adapter is not self.run_adapter:
            self.adapter.load({**self.run_adapter.shared(), **self.run_adapter.personal()})

    def cut(self, cut: Cut) -> None:
        """Take the class features from here on as they are cut."""
        same = self.adapter is self.run_adapter
        self.run_adapter = cut.adapter(self.run_adapter)
        self.adapter = self.run_adapter if same else cut.adapter(self.adapter)

    @property
    def gate(self) -> Gate | None:
        """What generalization is measured on."""
        return None if self._gate is None else self._gate[0]

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the encoder takes."""
        height, width = self._preprocessing.pixels(Image.fromarray(bundle_writer.golden_image())).shape[1:]
        return height, width

    def embedded(self, encoder: Encoder) -> measure.EmbeddedImages:
        """All images through the encoder."""
        self._observer.on_notice("Measuring the bundle on real images.")
        return measure.EmbeddedImages.of(encoder.content, self._preprocessing, self._images)

    def quantization_pixels(self, most: int) -> FloatArray | None:
        """Pixels of images that ranges of activations are measured on; None for a format that needs none.

        Raises:
            UserError: it needs some, and there are none.
        """
        if not most:
            return None
        chosen = evenly(self._images.quantization, most)
        if not len(chosen):
            raise UserError(
                "Static quantization measures ranges on images of training, and there are none here; give --images "
                "FOLDER with at least four, or choose --quantize int8."
            )
        return self._preprocessing.batch(self._images.load(chosen))

    def embedder(self, encoder: Encoder) -> Callable[[list[Image.Image]], FloatArray]:
        """From images to their embeddings by the encoder."""
        return lambda images: onnx_embeddings(encoder.content, self._preprocessing.batch(images))

    def write(
        self,
        kind: Literal["bundle", "classes"],
        encoder: Encoder,
        embedded: measure.EmbeddedImages,
        parity: ParityRecord,
        contents: bundle_writer.Contents,
        next_version: int,
        golden_record: GoldenRecord | None = None,
        cuts: CutsRecord | None = None,
    ) -> Exported:
        """Judge the export, then sign and write it; raises UserError if a gate is not passed."""
        options, backbone = self._options, self.trained.backbone
        generalization = None
        if self._gate is not None:
            generalization = measure.generalization(embedded, *self._gate, self.run_adapter, options.max_novel_drop)
        failed = measure.failures(parity, generalization, self.targets)
        if failed and not options.force:
            raise UserError(f"No bundle was written. {' '.join(failed)} --force writes it all the same.")
        contents = contents | bundle_writer.class_files(self._labels, self.bank, backbone.logit_scale)
        manifest = BundleManifest(
            kind=kind,
            version=next_version if options.bundle_version is None else options.bundle_version,
            encoder=encoder.digest,
            dim=self.bank.shape[1],
            classes=len(self._labels),
            run=run_record(self.trained, self._retuned_epochs),
            backbone=BackboneRecord(name=self.trained.plan.config.backbone, fingerprint=backbone.fingerprint),
            ticket=encoder.ticket,
            model=encoder.model,
            parity=parity,
            targets=self.targets,
            generalization=generalization,
            cuts=cuts,
            calibration=measure.calibration(embedded, self.run_adapter, self._labels, self.bank, options.unknown_rate),
            golden=golden_record,
            licence=options.licence,
            forced=failed,
            made_with={name: version(name) for name in _PACKAGES},
            files=bundle_writer.file_records(contents),
        )
        key = signing_key(options.key or default_key())
        bundle_writer.write_bundle(self._out, manifest, contents, key)
        return Exported(self._out, manifest, public_bytes(key))


def _require_exportable(run: Path) -> None:
    """Raise UserError for a run whose classifier is more than an image tower and a class bank."""
    method: Method = METHODS.load(RunDirectory(run).config().method)
    if method.takes_no_export:
        raise UserError(
            f"The run {run} cannot be exported: a bundle is an image tower and a class bank, and the method "
            f"{method.name!r} is more, because {method.takes_no_export}."
        )


def _images(trained: TrainedRun, options: ClassBankOptions, quantized: int) -> MeasurementImages:
    if options.images is not None:
        return folder_images(options.images, options.most_images, quantized)
    if options.site_folder is not None:
        return site_images(trained, SiteFolder.open(options.site_folder), options.most_images)
    return run_images(trained, options.most_images)


def run_record(trained: TrainedRun, retuned_epochs: int) -> RunRecord:
    """What a manifest says of the run."""
    config = trained.plan.config
    return RunRecord(
        name=trained.directory.path.resolve().name,
        method=config.method,
        data=config.data,
        protocol=config.protocol,
        seed=config.seed,
        fold=trained.split.folds[trained.fold].name,
        round=trained.round,
        site=trained.site_name,
        retuned_epochs=retuned_epochs,
        templates=list(trained.split.templates),
    )
