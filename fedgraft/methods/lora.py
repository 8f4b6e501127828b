"""Low-rank adapters of the towers (Hu et al., LoRA, ICLR 2022): what the methods of the family share.

For the weight W of a linear map, a site trains the change (alpha / rank) B A, with A (rank, in) and B (out, rank); the
adapted maps are those that PEFT's `target_modules` would select. Class names are put into the hand-written templates.
The methods differ in which of A and B is trained, kept or shared, and in how the server aggregates them.

Parameters have the names that PEFT gives them, without its prefix, such as
`text_model.encoder.layers.0.self_attn.q_proj.lora_A`.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedgraft.backbones import Backbone, ClassTokens
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.deltas import Delta, LinearMap, Tower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter, Batch
from fedgraft.methods.peft_folder import PeftFactors

CACHES = "final image features; with tower=image or both, the input of the first adapted image layer"


class LoraOptions(Options):
    """Size and location of the adapters."""

    rank: int = Field(4, ge=1, description="rank of every change", examples=[8])
    ranks: str = Field("", description="ranks dealt to the sites in turn, in place of rank", examples=["8,4,2"])
    alpha: float = Field(8.0, gt=0, description="a change is scaled by alpha / rank", examples=[16.0])
    targets: str = Field("q_proj,v_proj", description="PEFT's target_modules, or all-linear", examples=["all-linear"])
    tower: Literal["text", "image", "both"] = Field("text", description="the tower that is adapted", examples=["image"])
    templates: int = Field(1, ge=0, description="number of the source's templates to use; 0 uses all", examples=[0])
    layers: int = Field(0, ge=0, description="number of last layers to adapt; 0 adapts all", examples=[1])

    @field_validator("ranks")
    @classmethod
    def _ranks_are_numbers(cls, text: str) -> str:
        if text and not all(part.strip().isdigit() and int(part) >= 1 for part in text.split(",")):
            raise ValueError("ranks are positive whole numbers separated by commas, such as 4,8,2")
        return text

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that are adapted."""
        return ("text", "image") if self.tower == "both" else (self.tower,)

    def site_ranks(self) -> list[int]:
        """The ranks that are dealt to the sites in turn."""
        return [int(part) for part in self.ranks.split(",")] if self.ranks else [self.rank]

    def rank_of(self, site: int | None) -> int:
        """The rank of a site; for the server, the largest."""
        dealt = self.site_ranks()
        return max(dealt) if site is None else dealt[site % len(dealt)]


class OneRankOptions(LoraOptions):
    """For rules that average the factors."""

    ranks: str = Field("", description="the same rank for every site", examples=["8,8"])

    @field_validator("ranks")
    @classmethod
    def _ranks_are_one(cls, text: str) -> str:
        if len(several := {int(part) for part in text.split(",") if part}) > 1:
            raise ValueError(
                f"factors of the ranks {', '.join(map(str, sorted(several)))} have no mean; give all sites one rank, "
                "or use flora or flexlora, which allow different ranks"
            )
        return text


class LowRank(nn.Module):
    """The factors of one map as PEFT initializes them: lora_A (rank, in) uniform, lora_B (out, rank) zero.

    Args:
        shape: of the weight, (out, in).
        frozen: the factors that are not trained.
    """

    lora_A: Tensor  # noqa: N815
    lora_B: Tensor  # noqa: N815

    def __init__(self, shape: torch.Size, rank: int, generator: torch.Generator, frozen: frozenset[str]) -> None:
        super().__init__()
        start = torch.empty(rank, shape[1])
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        for name, value in (("lora_A", start), ("lora_B", torch.zeros(shape[0], rank))):
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
        self.rank = self.options.rank_of(self.adapter_context.site)
        backbone, options = self.vocabulary.backbone, self.options
        self.adapted = {tower: adapted_maps(backbone, options, tower) for tower in options.towers}
        self._cached = self.representation(backbone, options)
        self.factors: dict[str, LowRank] = {}
        draws = self.draws(generator)
        for name, (_, weight) in sorted(item for maps in self.adapted.values() for item in maps.items()):
            self.factors[name] = LowRank(weight.shape, self.rank, draws, self.frozen)
            _add_at(self, name, self.factors[name])
        self.personal_names = frozenset(f"{name}.{factor}" for name in self.factors for factor in self.kept)

    def draws(self, generator: torch.Generator) -> torch.Generator:
        """The generator that A is drawn from."""
        return generator

    @property
    def scaling(self) -> float:
        """The factor alpha / rank."""
        return self.options.alpha / self.rank

    def weight(self, name: str) -> Tensor | None:
        """A map's weight before the site's own change; None where it is the backbone's."""
        return None

    def shares_weights_with(self, other: Self) -> bool:
        """Whether everything that one pass shares among adapters, that is, all but A and B, equals another's."""
        return True

    @torch.no_grad()
    def change(self, name: str) -> Tensor:
        """The total change of a map's frozen weight, (out, in)."""
        factors = self.factors[name]
        return self.scaling * factors.lora_B @ factors.lora_A

    def merged_weights(self, tower: Tower) -> dict[str, Tensor]:
        """A tower's adapted weights with all changes merged, by their names in the Hugging Face model."""
        maps = self.adapted.get(tower, {})
        return {f"{name}.weight": (found.weight + self.change(name)).detach() for name, found in maps.items()}

    def image_encoder(self) -> nn.Module:
        """A copy of the image tower with all changes merged, for exports."""
        return self.vocabulary.backbone.image_encoder(self.merged_weights("image"))

    def vision_tower(self) -> VisionTower:
        """A copy of the image tower with all changes merged, for tickets."""
        return self.vocabulary.backbone.vision_tower(self.merged_weights("image"))

    def as_peft(self) -> PeftFactors:
        """The factors as PEFT stores them."""
        factors = {name: (own.lora_A.detach(), own.lora_B.detach()) for name, own in self.factors.items()}
        return PeftFactors(self.rank, self.options.alpha, factors)

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
        rank = max(adapter.rank for adapter in adapters)
        deltas = {}
        for name in adapters[0].adapted[tower]:
            own = [adapter.factors[name] for adapter in adapters]
            right = [F.pad(factors.lora_A, (0, 0, 0, rank - len(factors.lora_A))) for factors in own]
            left = [
                adapter.scaling * F.pad(factors.lora_B, (0, rank - adapter.rank))
                for adapter, factors in zip(adapters, own, strict=True)
            ]
            deltas[name] = Delta(torch.stack(right), torch.stack(left), adapters[0].weight(name))
        return deltas


def adapted_maps(backbone: Backbone, options: LoraOptions, tower: Tower) -> dict[str, LinearMap]:
    """The maps of a tower that PEFT would adapt with these targets and layers.

    Raises:
        UserError: a target matches no map, there are fewer layers, or a rank exceeds a dimension.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    maps = backbone.linear_maps(tower)
    if not maps:
        raise UserError(f"The backbone {backbone.name!r} has no adaptable linear maps in its {tower} tower.")
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[1] for name in maps))
    depth = 1 + max(found.layer for found in maps.values())
    if options.layers > depth:
        raise UserError(f"layers={options.layers}, but the {tower} tower has {depth} layers; 0 adapts all of them.")
    names = backbone.map_names(tower)
    written = [part.strip() for part in options.targets.split(",")]
    targets = kinds if options.targets == "all-linear" else [names.get(part, part) for part in written]
    chosen: dict[str, LinearMap] = {}
    for target in targets:
        config = LoraConfig(target_modules=[target])
        matched = {name: found for name, found in maps.items() if check_target_module_exists(config, name)}
        if not matched:
            raise UserError(
                f"The target module {target!r} matches no linear map of the {tower} tower; "
                f"it has {', '.join(kinds)} in {depth} layers, such as {next(iter(maps))}."
            )
        chosen.update(matched)
    last = {
        name: chosen[name] for name in maps if name in chosen and maps[name].layer >= depth - (options.layers or depth)
    }
    largest = options.rank_of(None)
    name, smallest = min(((n, min(found.weight.shape)) for n, found in last.items()), key=lambda pair: pair[1])
    if largest > smallest:
        raise UserError(
            f"The rank {largest} exceeds a dimension of {name}, {' x '.join(map(str, last[name].weight.shape))}; "
            f"give at most {smallest}."
        )
    return last


def _add_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted name."""
    *parents, last = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)
