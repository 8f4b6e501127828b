"""Cutting an exported classifier to the first layers of its image tower and the first dimensions of its features.

A run of a method that trains cuts is cut along its own dimensions. Any other is rotated first, so that the first
dimensions span the bundle's classes, the next the run's, and the last what the backbone knows of others: with as many
dimensions as classes, predictions stay the same. A bundle keeps that map, so that later class banks fit its encoder.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.drift_classes import drift_classes
from fedgraft.backbones.loading import located
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.device.bundle import Bundle
from fedgraft.edge_export.bundle_manifest import CutRecord, CutsRecord
from fedgraft.edge_export.dense_tower import DenseTower, ExportedTower
from fedgraft.edge_export.measure import EmbeddedImages
from fedgraft.edge_export.measurement_images import Gate
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.parity import accuracy, torch_embeddings
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.edge_export.trained_run import class_features, features_of
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.cuts import Cuts
from fedgraft.methods.nesting import halved, prefix, principal_directions, projected
from fedgraft.methods.plan import Plan
from fedgraft.runs.run_directory import RunDirectory

PROJECTION = "projection.safetensors"
_KEY = "projection"


def require_cut(run: Path, options: BundleOptions) -> None:
    """Check what is to be cut by configurations alone.

    Raises:
        UserError: the backbone has fewer dimensions or layers, the run has trained no classifier at the depth, or
            another option does not go together with a cut.
    """
    if options.dim is None and options.depth is None:
        return
    if options.retune:
        raise UserError("--retune trains the prompt at the whole size; leave it out, or --dim and --depth.")
    if options.depth is not None and (options.sparsity or options.ticket != "natural"):
        raise UserError("--depth cuts the dense image tower; leave out --sparsity and --ticket, or --depth.")
    if options.keep_patches:
        raise UserError("--keep-patches is for a tower of the whole size; leave it out, or --dim and --depth.")
    plan = Plan.of(RunDirectory(run).config())
    backbone = located(plan.config.backbone)
    sizes = backbone.sizes()
    early = 0 if options.depth in (None, sizes.image_layers) else options.depth
    Needs(dim=options.dim or 0, exit=early or 0).check(backbone.name, backbone.abilities(), sizes)
    known = plan.method.adapter.cuts(plan.options, sizes.dim).depths
    if early and early not in known:
        has = f"only behind {' and '.join(map(str, known))}" if known else "none behind an early layer"
        raise UserError(
            f"The run {run} has no classifier behind layer {early} of its image tower ({has}); give one of its depths, "
            f"or train with a method that has them, such as --method matryoshka --set depths={early}."
        )


@dataclass(frozen=True)
class Cut:
    """A linear map (k, dim) of image and class features in one bundle; None where both stay as they are."""

    projection: Tensor | None = None

    @classmethod
    def of_bundle(cls, bundle: Bundle, dim: int) -> "Cut":
        """That of an existing bundle, for more class banks of its encoder."""
        if PROJECTION in bundle.manifest.files:
            return cls(load(bundle.read(PROJECTION))[_KEY])
        return cls() if bundle.manifest.dim >= dim else cls(torch.eye(dim)[: bundle.manifest.dim])

    def tower(self, tower: ExportedTower) -> ExportedTower:
        """An exported tower with the map behind it."""
        if self.projection is None:
            return tower
        vision = projected(tower.vision, self.projection)
        if isinstance(tower, Ticket) and isinstance(vision, VisionTower):
            return replace(tower, vision=vision)
        return DenseTower(tower.spec, vision)

    def adapter(self, adapter: Adapter) -> Adapter:
        """An adapter whose class features are mapped."""
        return adapter if self.projection is None else _CutAdapter(adapter, self.projection)


class Cutting:
    """How the classifier of an adapter is cut for a bundle, and how well every cut classifies.

    Args:
        adapter: of the bundle's labels.
        run_adapter: of the run's own classes.
    """

    def __init__(self, plan: Plan, adapter: Adapter, run_adapter: Adapter, options: BundleOptions) -> None:
        self._adapter, self._dim, self._wanted = run_adapter, run_adapter.vocabulary.backbone.dim, options
        self._bundled = adapter
        self._trained = plan.method.adapter.cuts(plan.options, self._dim)
        self.dim = options.dim or self._dim
        self.depth = options.depth if options.depth in self._trained.depths else None
        self.nested = bool(self._trained.dims)
        self._rotation = torch.eye(self._dim)
        if self.dim < self._dim and not self.nested:
            self._rotation = _directions(adapter, run_adapter)

    @property
    def cut(self) -> Cut:
        """The map of the bundle."""
        return Cut(self._rotation[: self.dim].contiguous()) if self.dim < self._dim else Cut()

    def files(self) -> dict[str, bytes]:
        """The map for later class banks, where it is more than to leave dimensions out."""
        cut = self.cut.projection
        return {} if cut is None or self.nested else {PROJECTION: save({_KEY: cut})}

    def announce(self, observer: Observer) -> None:
        """Say what the run was not trained for."""
        if self.dim == self._dim or self.dim in self._trained.dims:
            return
        if self.nested:
            sizes = ", ".join(map(str, self._trained.dims))
            observer.on_notice(f"The run was not trained to be cut to {self.dim} dimensions, but to {sizes}.")
        else:
            classes = len(self._bundled.vocabulary.class_names)
            observer.on_notice(
                f"The run was not trained to be cut to {self.dim} dimensions, so its features are rotated first; "
                f"from {classes} dimensions on, predictions among its {classes} classes stay as they are."
            )

    def shallow_encoder(self) -> nn.Module | None:
        """The image tower cut in depth; None for the whole."""
        return None if self.depth is None else self._adapter.shallow_encoder(self.depth)

    def record(self, embedded: EmbeddedImages, gate: Gate | None, tower: nn.Module) -> CutsRecord | None:
        """The accuracy of each cut on test images, in float32; None where nothing was to be cut.

        Args:
            tower: what is exported, at all dimensions.
        """
        asked = self._wanted.dim is not None or self._wanted.depth is not None
        if not asked and self._trained == Cuts():
            return None
        dims = sorted({*(self._trained.dims or halved(self._dim)), self.dim, self._dim})
        cuts: list[CutRecord] = []
        for depth in (*self._trained.depths, None):
            accuracies = dict.fromkeys(dims)
            if gate is not None:
                vision = tower if depth == self.depth else self._encoder_at(depth)
                accuracies = self._accuracies(embedded, gate, vision, dims)
            cuts += [CutRecord(dim=dim, depth=depth, accuracy=accuracies[dim]) for dim in dims]
        return CutsRecord(
            dim=self.dim,
            depth=self.depth,
            whole_dim=self._dim,
            trained=self.dim in (*self._trained.dims, self._dim),
            scope=None if gate is None else gate.scope,
            images=0 if gate is None else len(gate.positions),
            cuts=cuts,
        )

    def _encoder_at(self, depth: int | None) -> nn.Module:
        return self._adapter.image_encoder() if depth is None else self._adapter.shallow_encoder(depth)

    def _accuracies(
        self, embedded: EmbeddedImages, gate: Gate, vision: nn.Module, dims: list[int]
    ) -> dict[int, float | None]:
        rows = embedded.rows(gate.positions)
        truths = torch.searchsorted(
            torch.tensor(gate.classes), torch.from_numpy(embedded.images.examples.labels[gate.positions])
        ).numpy()
        images = torch.from_numpy(torch_embeddings(vision, embedded.pixels[rows])) @ self._rotation.mT
        classes = features_of(self._adapter, gate.classes) @ self._rotation.mT
        return {dim: accuracy(prefix(images, dim).numpy(), prefix(classes, dim).numpy(), truths) for dim in dims}


class _CutAdapter(Adapter):
    """An adapter whose class features are mapped; everything else is the adapter's own."""

    def __init__(self, inner: Adapter, projection: Tensor) -> None:
        nn.Module.__init__(self)
        self.inner, self.vocabulary, self.options = inner, inner.vocabulary, inner.options
        self.adapter_context, self._projection = inner.adapter_context, projection.to(inner.vocabulary.backbone.device)

    def build(self, generator: torch.Generator) -> None:
        """Nothing is built."""

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The mapped rows at unit norm."""
        return F.normalize(self.inner.class_features(classes).float() @ self._projection.mT, dim=-1)

    def image_encoder(self) -> nn.Module:
        """The whole tower, which the cut one is compared with."""
        return self.inner.image_encoder()

    @property
    def changes_images(self) -> bool:
        """As the adapter says."""
        return self.inner.changes_images

    @property
    def class_specific(self) -> bool:
        """As the adapter says."""
        return self.inner.class_specific


def _directions(adapter: Adapter, run_adapter: Adapter) -> Tensor:
    """An orthogonal matrix (dim, dim): its first rows span the classes of the bundle, the next those of the run."""
    text, vocabulary = run_adapter.vocabulary.backbone.text, run_adapter.vocabulary
    banks = [class_features(own) for own in dict.fromkeys((adapter, run_adapter))]
    others = text.encode_classes(drift_classes(vocabulary.backbone.name), vocabulary.templates[:1])
    return principal_directions(*banks, others)
