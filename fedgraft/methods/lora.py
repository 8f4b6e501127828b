"""Low-rank adapters of the towers (Hu et al., LoRA, ICLR 2022): what the methods of the family share.

For the weight W of a linear map, a site trains the change (alpha / rank) B A, with A (rank, in) and B (out, rank); the
adapted maps are those that PEFT's `target_modules` would select. Class names are put into the hand-written templates.
The methods differ in which of A and B is trained, kept or shared, and in how the server aggregates them. DoRA (Liu et
al., ICML 2024) also trains the magnitudes m (out) of the rows, W' = m V / |V| with V = W + (alpha / rank) B A, with the
norms of the rows as constants in the gradient, as its authors have them.

Whatever the scaling, what is shared is in units of alpha / rank, B times scaling x rank / alpha, so that the server can
sum the changes of sites of any ranks without knowing the options.

Parameters have the names that PEFT gives them, without its prefix, such as
`text_model.encoder.layers.0.self_attn.q_proj.lora_A`.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone, ClassTokens
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.deltas import Delta, Tower
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.methods.adapter import Adapter, Batch
from fedgraft.methods.lora_options import DoraOptions, LoraOptions
from fedgraft.methods.lora_targets import adapted_maps
from fedgraft.methods.peft_folder import PeftFactors

CACHES = "final image features; with tower=image or both, the input of the first adapted image layer"


class LowRank(nn.Module):
    """The factors of one map as PEFT initializes them: lora_A (rank, in) uniform, lora_B (out, rank) zero.

    Args:
        weight: of the map, (out, in).
        frozen: the factors that are not trained.
        magnitude: whether to add `lora_magnitude_vector` (out), at first the norms of the weight's rows.
    """

    lora_A: Tensor  # noqa: N815
    lora_B: Tensor  # noqa: N815
    lora_magnitude_vector: Tensor

    def __init__(
        self, weight: Tensor, rank: int, generator: torch.Generator, frozen: frozenset[str], magnitude: bool = False
    ) -> None:
        super().__init__()
        start = torch.empty(rank, weight.shape[1])
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        if magnitude:
            norms = torch.linalg.vector_norm(weight.detach().float(), dim=1)
            self.register_parameter("lora_magnitude_vector", nn.Parameter(norms.cpu()))
        for name, value in (("lora_A", start), ("lora_B", torch.zeros(weight.shape[0], rank))):
            if name in frozen:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))


class LoraAdapter(Adapter):
    """A and B of every adapted map; both are trained and shared unless a method says otherwise."""

    options: LoraOptions
    frozen: ClassVar[frozenset[str]] = frozenset()
    """Factors that keep their initial value and do not travel."""
    kept: ClassVar[frozenset[str]] = frozenset()
    """Factors that stay at the site."""

    def build(self, generator: torch.Generator) -> None:
        """Factors for all maps, drawn in the order of their names.

        Raises:
            UserError: a target matches nothing, or a rank or number of layers is too large.
        """
        self.rank = self.largest_rank()
        backbone, options = self.vocabulary.backbone, self.options
        self.adapted = {tower: adapted_maps(backbone, options, tower) for tower in options.towers}
        self._cached = self.representation(backbone, options)
        self.factors: dict[str, LowRank] = {}
        draws = self.draws(generator)
        for name, (_, weight) in sorted(item for maps in self.adapted.values() for item in maps.items()):
            self.factors[name] = LowRank(weight, self.rank, draws, self.frozen, self.has_magnitudes)
            _add_at(self, name, self.factors[name])
        kept = self.kept & {"lora_A", "lora_B", *(["lora_magnitude_vector"] if self.has_magnitudes else [])}
        self.personal_names = frozenset(f"{name}.{factor}" for name in self.factors for factor in kept)

    def largest_rank(self) -> int:
        """The rank of the factors: the site's own."""
        return self.options.rank_of(self.adapter_context.site)

    def draws(self, generator: torch.Generator) -> torch.Generator:
        """The generator that A is drawn from."""
        return generator

    @property
    def has_magnitudes(self) -> bool:
        """Whether the rows' magnitudes are learnt apart."""
        return isinstance(self.options, DoraOptions) and self.options.dora

    @property
    def scaling(self) -> float:
        """The factor on B A."""
        return self.options.scaling(self.rank)

    @property
    def _units(self) -> float:
        """The factor on a B that travels; 1 for the scaling alpha / rank."""
        return self.scaling * self.rank / self.options.alpha

    def shared(self) -> dict[str, Tensor]:
        """The parameters that travel, B in units of alpha / rank."""
        return self._with_b_times(self._units, super().shared())

    def load(self, values: dict[str, Tensor]) -> None:
        """Overwrite some parameters; a B that travels is in units of alpha / rank."""
        super().load(self._with_b_times(1 / self._units, values))

    def _with_b_times(self, factor: float, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if factor == 1.0:
            return values
        return {
            name: value * factor if name.endswith("lora_B") and name not in self.personal_names else value
            for name, value in values.items()
        }

    def weight(self, name: str) -> Tensor | None:
        """A map's weight before the site's own change; None where it is the backbone's."""
        return None

    def shares_weights_with(self, other: Self) -> bool:
        """Whether everything that one pass shares among adapters, that is, all but A and B, equals another's."""
        return True

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """The site's own change of a map as A (rank, in) and B (out, rank), whose product it is."""
        factors = self.factors[name]
        return factors.lora_A, self.scaling * factors.lora_B

    @torch.no_grad()
    def change(self, name: str) -> Tensor:
        """The total change of a map's frozen weight, (out, in)."""
        right, left = self.parts(name)
        change: Tensor = left @ right
        if self.has_magnitudes:
            frozen = self._frozen(name).float()
            change = self._row_scale(name)[:, None] * (frozen + change) - frozen
        return change

    def _frozen(self, name: str) -> Tensor:
        return next(maps[name].weight for maps in self.adapted.values() if name in maps)

    def _row_scale(self, name: str) -> Tensor:
        """m / |W + scaling B A| of each row, (out); differentiable in m alone."""
        factors = self.factors[name]
        with torch.no_grad():
            adapted = self._frozen(name).float() + self.scaling * factors.lora_B @ factors.lora_A
            norms: Tensor = torch.linalg.vector_norm(adapted, dim=1)
        return factors.lora_magnitude_vector / norms

    def merged_weights(self, tower: Tower) -> dict[str, Tensor]:
        """A tower's adapted weights with all changes merged, by their names in the Hugging Face model."""
        maps = self.adapted.get(tower, {})
        return {f"{name}.weight": (found.weight + self.change(name)).detach() for name, found in maps.items()}

    def image_encoder(self) -> nn.Module:
        """A copy of the image tower with all changes merged, for exports."""
        return self.vocabulary.backbone.image_encoder(self.merged_weights("image"))

    def vision_tower(self) -> PrunableTower:
        """A copy of the image tower with all changes merged, for tickets."""
        return self.vocabulary.backbone.vision_tower(self.merged_weights("image"))

    def as_peft(self) -> PeftFactors:
        """The factors as PEFT stores them."""
        factors = {name: (own.lora_A.detach(), self._units * own.lora_B.detach()) for name, own in self.factors.items()}
        magnitudes = {}
        if self.has_magnitudes:
            magnitudes = {name: own.lora_magnitude_vector.detach() for name, own in self.factors.items()}
        return PeftFactors(self.rank, self.options.alpha, factors, magnitudes)

    @classmethod
    def needs(cls, options: LoraOptions) -> Needs:
        """Linear maps in the adapted towers; the written prompts stand before the class names."""
        return Needs(
            placement="before" if "text" in options.towers else None,
            low_rank=options.towers,
            cut="image" in options.towers,
        )

    @classmethod
    def representation(cls, backbone: Backbone, options: LoraOptions) -> Representation:
        """The input of the first adapted layer of the image tower.

        Raises:
            UserError: as in `build`, for both towers: this is called before any image features are computed.
        """
        adapted = {tower: adapted_maps(backbone, options, tower) for tower in options.towers}
        if "image" not in adapted:
            return FEATURES
        return Representation(layer=min(found.layer for found in adapted["image"].values()))

    @property
    def changes_images(self) -> bool:
        """Whether the image tower is adapted."""
        return "image" in self.adapted

    def image_features(self, images: Tensor) -> Tensor:
        """Features after the adapted layers of the image tower."""
        if "image" not in self.adapted:
            return images
        return self.vocabulary.backbone.finish_images(images, self._cached, self._deltas([self], "image"))

    # --- the classifier ---------------------------------------------------------------------------

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The normalized mean over the hand-written templates, through the adapted text tower."""
        return self.all_class_features([self], classes)[0]

    @classmethod
    def all_class_features(cls, adapters: Sequence[Self], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites for each template."""
        first = adapters[0]
        if "text" not in first.adapted:
            return [first.vocabulary.zero_shot[list(classes)]] * len(adapters)
        if not all(first.shares_weights_with(other) for other in adapters[1:]):
            return [adapter.class_features(classes) for adapter in adapters]
        deltas = cls._deltas(adapters, "text")
        encode = first.vocabulary.backbone.text.encode_prompts
        encoded = [
            encode(context.expand(len(adapters), -1, -1), tokens, deltas=deltas)
            for context, tokens in first._written(classes)
        ]
        features = encoded[0] if len(encoded) == 1 else F.normalize(torch.stack(encoded).mean(0), dim=-1)
        return list(features)

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """One pass of the text tower over all sites."""
        features = cls.all_class_features(adapters, classes)
        return [
            adapter.cross_entropy(adapter.image_features(batch.images), own, batch.labels)
            for adapter, own, batch in zip(adapters, features, batches, strict=True)
        ]

    def sites_per_pass(self, classes: tuple[int, ...]) -> int:
        """As many sites as keep one pass in the processor's cache."""
        return self.vocabulary.sites_per_pass(max(len(tokens.kept) for _, tokens in self._written(classes)))

    def _written(self, classes: tuple[int, ...]) -> list[tuple[Tensor, ClassTokens]]:
        """The hand-written prompts that the classifier uses."""
        return self.vocabulary.template_prompts(classes)[: self.options.templates or None]

    @classmethod
    def _deltas(cls, adapters: Sequence[Self], tower: Tower) -> dict[str, Delta]:
        """The changes of a tower, one row per site; smaller ranks are padded with zeros, which add nothing."""
        deltas = {}
        for name in adapters[0].adapted[tower]:
            parts = [adapter.parts(name) for adapter in adapters]
            rank = max(len(right) for right, _ in parts)
            rights = [F.pad(right, (0, 0, 0, rank - len(right))) for right, _ in parts]
            lefts = [F.pad(left, (0, rank - left.shape[1])) for _, left in parts]
            scale = torch.stack([a._row_scale(name) for a in adapters]) if adapters[0].has_magnitudes else None
            deltas[name] = Delta(torch.stack(rights), torch.stack(lefts), adapters[0].weight(name), scale)
        return deltas


def _add_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted name."""
    *parents, last = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)
