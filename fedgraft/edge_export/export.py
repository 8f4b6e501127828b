"""Export: fold, draw or load a ticket, write ONNX, measure it, and write a signed bundle, or refuse with figures."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from fedgraft.methods.adapter import Adapter
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.device.bundle import Bundle, open_bundle
from fedgraft.device.manifest import MODEL
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export import bundle as writing
from fedgraft.edge_export import measure
from fedgraft.edge_export.encoder import Encoder, encoder_of, traced_encoder
from fedgraft.edge_export.trained_run import Source, adapter_of, class_features, open_run
from fedgraft.edge_export.measurement_images import ExportImages, folder_images, run_images, site_images
from fedgraft.edge_export.bundle_manifest import BackboneRecord, BundleManifest, GoldenRecord, ParityRecord, RunRecord
from fedgraft.edge_export.onnx_model import Quantization
from fedgraft.edge_export.parity import FloatArray, onnx_embeddings
from fedgraft.edge_export.retune import retune
from fedgraft.edge_export.signing import default_key, public_bytes, signing_key
from fedgraft.edge_export.towers import TicketChoice, chosen_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer

_MIN_GOLDEN_COSINE: dict[Quantization, float] = {"none": 0.999, "fp16": 0.99, "int8": 0.97}
_PACKAGES = ("fedgraft", "torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class ExportOptions:
    """What an export is made of.

    Attributes:
        site: "global", or the number of a site.
        fold: the domain that was left out, where the run has a federation for each.
        site_folder: of a deployed site, with its personal state and images.
        images: a folder class/image to measure on instead of the run's own.
        labels: of the class bank; the run's unless given.
        ticket: which image tower.
        classes_for: a bundle whose encoder stays; only a class bank is written.
        retune_epochs: of the site's prompt on its own images, with the ticket's features.
        max_novel_drop: percentage points of accuracy that the bundle may lose against the dense backbone.
        unknown_rate: share of known images that may be called unknown.
        most_images: of each of the sets that are measured.
        version: of the bundle, 1 unless given, or one more than that of `classes_for`.
        licence: of the weights.
        key: the signing key; the user's own unless given.
        force: write a bundle that a gate refuses.
        web: put a page beside it that runs the bundle in a browser.
    """

    site: str = "global"
    fold: str | None = None
    site_folder: Path | None = None
    images: Path | None = None
    labels: tuple[str, ...] | None = None
    ticket: TicketChoice = field(default_factory=TicketChoice)
    quantization: Quantization = "none"
    classes_for: Path | None = None
    retune_epochs: int = 0
    max_novel_drop: float = 5.0
    unknown_rate: float = 0.05
    most_images: int = 256
    version: int | None = None
    licence: str | None = None
    key: Path | None = None
    force: bool = False
    web: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        if not 0 <= self.max_novel_drop <= 100:
            raise UserError(f"--max-novel-drop is between 0 and 100 percentage points, not {self.max_novel_drop:g}.")
        if not 0 <= self.unknown_rate < 1:
            raise UserError(f"--unknown-rate is a share of at least 0 and less than 1, not {self.unknown_rate:g}.")
        if self.retune_epochs < 0 or (self.retune_epochs and self.classes_for is not None):
            raise UserError("--retune is a number of epochs, and of no use for a class bank alone.")
        if self.most_images < 1 or (self.version is not None and self.version < 0):
            raise UserError("The number of images is at least 1, and a bundle's version at least 0.")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    manifest: BundleManifest
    signer: bytes


def export(run: Path, out: Path, options: ExportOptions, observer: Observer | None = None) -> Exported:
    """Write the bundle, or the class bank alone, of a run and a site.

    Raises:
        UserError: a mistake in the options, or a gate that the bundle does not pass; nothing was written.
    """
    observer = observer or Observer()
    writing.check_out(out)
    source = open_run(run, options.site, options.fold, options.site_folder)
    names = source.deal.class_names
    labels = options.labels or names
    adapter = adapter_of(source, labels)
    known = adapter if labels == names else adapter_of(source, names)
    images = _images(source, options)
    page = _page(options, observer)
    old = None if options.classes_for is None else open_bundle(options.classes_for)
    encoder = _encoder(source, adapter, old, options, observer)
    before = None if images.gate is None else class_features(known, images.gate.class_names).numpy()
    if options.retune_epochs:
        _retune(source, known, adapter, encoder, images, options, observer)
    bank = class_features(adapter).numpy()
    prepare = Preprocessing.from_config(source.backbone.preprocessor_config())
    observer.on_notice("Measuring the bundle on real images.")
    seen = measure.Embedded.of(encoder.model, prepare, images)
    parity = encoder.parity or _parity(seen, encoder, bank, options)
    kept = None
    if images.gate is not None and before is not None:
        kept = measure.generalization(seen, images.gate, known, before, options.max_novel_drop)
    failed = measure.failures(parity, kept)
    if failed and not options.force:
        raise UserError(f"No bundle was written. {' '.join(failed)} --force writes it all the same.")
    contents = writing.class_files(labels, bank, source.backbone.logit_scale)
    golden = None
    if old is None:
        contents |= page | {MODEL: encoder.model} | _golden(encoder.model, prepare)
        contents |= writing.preprocessor_file(source.backbone.preprocessor_config())
        golden = GoldenRecord(min_cosine=_MIN_GOLDEN_COSINE[options.quantization])
    files = writing.file_records(contents)
    manifest = BundleManifest(
        kind="bundle" if old is None else "classes",
        version=_version(options, old),
        encoder=files[MODEL].sha256 if old is None else old.manifest.encoder,
        dim=source.backbone.dim,
        classes=len(labels),
        run=_run_record(source, options.retune_epochs),
        backbone=BackboneRecord(name=source.config.backbone, fingerprint=source.backbone.fingerprint),
        ticket=encoder.ticket_record,
        model=encoder.model_record,
        parity=parity,
        generalization=kept,
        calibration=measure.calibration(seen, known, labels, bank, options.unknown_rate),
        golden=golden,
        licence=options.licence,
        forced=failed,
        made_with={name: version(name) for name in _PACKAGES},
        files=files,
    )
    key = signing_key(options.key or default_key())
    writing.write_bundle(out, manifest, contents, key)
    return Exported(out, manifest, public_bytes(key))


def _images(source: Source, options: ExportOptions) -> ExportImages:
    if options.images is not None:
        return folder_images(options.images, options.most_images)
    if options.site_folder is not None:
        return site_images(SiteFolder.open(options.site_folder), source.config, options.most_images)
    return run_images(source, options.most_images)


def _page(options: ExportOptions, observer: Observer) -> writing.Contents:
    if not options.web:
        return {}
    from fedgraft.edge_export.web import page_files

    observer.on_notice("Taking onnxruntime-web from the npm registry, or from where it is kept.")
    return page_files()


def _encoder(
    source: Source, adapter: Adapter, old: Bundle | None, options: ExportOptions, observer: Observer
) -> Encoder:
    if old is not None:
        return encoder_of(old, source.backbone)
    ticket = chosen_ticket(source, adapter, options.ticket, observer)
    observer.on_notice("Tracing the image tower into ONNX.")
    return traced_encoder(ticket, options.quantization)


def _parity(seen: measure.Embedded, encoder: Encoder, bank: FloatArray, options: ExportOptions) -> ParityRecord:
    assert encoder.ticket is not None
    return measure.parity(seen, encoder.ticket.vision, bank, options.quantization, options.most_images)


def _retune(
    source: Source,
    known: Adapter,
    adapter: Adapter,
    encoder: Encoder,
    images: ExportImages,
    options: ExportOptions,
    observer: Observer,
) -> None:
    """Train for the run's classes, and take the parameters over for other labels."""
    assert encoder.ticket is not None
    observer.on_notice(f"Re-tuning the prompt on the ticket, {options.retune_epochs} epochs.")
    retune(source, known, encoder.ticket, images, options.retune_epochs)
    if adapter is not known:
        adapter.load({**known.shared(), **known.personal()})


def _version(options: ExportOptions, old: Bundle | None) -> int:
    if options.version is not None:
        return options.version
    return 1 if old is None else old.manifest.version + 1


def _golden(model: bytes, prepare: Preprocessing) -> writing.Contents:
    image = writing.golden_image()
    pixels: FloatArray = prepare.batch([Image.fromarray(image)])
    return writing.golden_file(image, onnx_embeddings(model, pixels)[0])


# --- the manifest ---------------------------------------------------------------------------------


def _run_record(source: Source, retuned_epochs: int) -> RunRecord:
    config = source.config
    return RunRecord(
        name=source.run.resolve().name,
        method=config.method,
        data=config.data,
        protocol=config.protocol,
        seed=config.seed,
        fold=source.deal.folds[source.fold].name,
        round=source.round,
        site=source.name,
        retuned_epochs=retuned_epochs,
        templates=list(source.deal.templates),
    )
