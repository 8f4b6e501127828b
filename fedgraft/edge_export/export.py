"""The two exports of a run: a signed bundle for devices, and a class bank alone for a bundle whose encoder stays.

If a gate is not passed, the export is refused with the figures, and nothing is written.
"""

from pathlib import Path

from fedgraft.backbones.abilities import Needs
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.device.bundle import Bundle, open_bundle
from fedgraft.device.manifest import MODEL
from fedgraft.edge_export import bundle_writer, measure
from fedgraft.edge_export.bundle_manifest import BundleManifest
from fedgraft.edge_export.cutting import Cut, Cutting, require_cut
from fedgraft.edge_export.draft import Draft, Exported, run_record
from fedgraft.edge_export.encoder import bundled_encoder, traced_encoder
from fedgraft.edge_export.golden import golden
from fedgraft.edge_export.number_formats import find_format
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions
from fedgraft.edge_export.targets.known import find_targets
from fedgraft.edge_export.targets.target import Tower
from fedgraft.edge_export.towers import chosen_tower, needs_of
from fedgraft.edge_export.web import page_files


def export_bundle(run: Path, out: Path, options: BundleOptions, observer: Observer | None = None) -> Exported:
    """Write a bundle: encoder, class bank, labels, preprocessing, golden sample and signed manifest.

    Raises:
        UserError: a mistake in the options, or a gate that is not passed.
        DeviceError: an image cannot be used.
    """
    observer = observer or Observer()
    number_format = find_format(options.quantize)
    targets = find_targets(options.target, options.quantize)
    require_cut(run, options)
    draft = Draft(run, out, options, observer, needs_of(options))
    contents: bundle_writer.Contents = {}
    if options.web:
        observer.on_notice("Taking onnxruntime-web from the cache or from the npm registry.")
        contents |= page_files()
    cutting = Cutting(draft.trained.plan, draft.adapter, draft.run_adapter, options)
    cutting.announce(observer)
    whole = chosen_tower(draft.trained, draft.adapter, options, observer, cutting.shallow_encoder())
    tower = cutting.cut.tower(whole)
    draft.cut(cutting.cut)
    observer.on_notice("Tracing the image tower into ONNX.")
    ranges = draft.quantization_pixels(number_format.calibration_images)
    encoder = traced_encoder(tower, draft.image_size, number_format, ranges, options.opset)
    if options.retune:
        draft.retune(tower, options.retune)
    embedded = draft.embedded(encoder)
    model, most = encoder.content, options.most_images
    parity = measure.parity(embedded, tower.vision, model, draft.bank, number_format, most)
    cuts = cutting.record(embedded, draft.gate, whole.vision)
    golden_file, golden_record = golden(draft.embedder(encoder), number_format, options.golden_images)
    contents |= {MODEL: model, **golden_file, **cutting.files()}
    for target in targets:
        observer.on_notice(f"Converting the image tower for {target.name}.")
        prepared = Tower(tower.vision, model, draft.image_size)
        files, record = measure.target_parity(embedded, prepared, target, draft.bank, number_format, most)
        contents |= files
        draft.targets.append(record)
    contents |= bundle_writer.preprocessor_file(draft.trained.backbone.preprocessor_config())
    return draft.write("bundle", encoder, embedded, parity, contents, 1, golden_record, cuts)


def export_class_bank(
    run: Path, bundle: Path, out: Path, options: ClassBankOptions, observer: Observer | None = None
) -> Exported:
    """Write a class bank alone, for the encoder of an existing bundle.

    Raises:
        UserError: a mistake in the options, a bundle of another backbone, a bundle of another run although this one
            changes the image tower, or a gate that is not passed.
        DeviceError: the bundle or an image cannot be used.
    """
    draft = Draft(run, out, options, observer or Observer(), Needs(exports=True))
    old = open_bundle(bundle)
    encoder, parity = bundled_encoder(old, draft.trained.backbone)
    _require_own_encoder(draft, old)
    draft.cut(Cut.of_bundle(old, draft.trained.backbone.dim))
    embedded = draft.embedded(encoder)
    return draft.write("classes", encoder, embedded, parity, {}, old.manifest.version + 1)


def _require_own_encoder(draft: Draft, bundle: Bundle) -> None:
    """Raise UserError for the encoder of another run or site, where the run changes the image tower."""
    own, other = run_record(draft.trained, 0), BundleManifest.model_validate(bundle.manifest.content).run
    decisive = ("name", "method", "seed", "fold", "round", "site")
    if draft.adapter.changes_images and any(getattr(own, key) != getattr(other, key) for key in decisive):
        raise UserError(
            f"The run {own.name} changes the image tower, so its class bank for site {own.site} does not fit the "
            f"encoder of {bundle.path}, made from the run {other.name} for site {other.site} after round "
            f"{other.round}; export a whole bundle."
        )
