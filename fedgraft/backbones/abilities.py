"""What a backbone can do, how large it is, and what a method needs of it: compared before anything is loaded.

A family declares its abilities, and reads sizes and abilities of one folder from its configuration alone. A method says
what it needs under its options. Nothing here knows the name of a family or of a method.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from fedgraft.backbones.deltas import Tower
from fedgraft.core.errors import UserError

Placement = Literal["before", "middle", "behind"]
"""The position of a context: before the class name, half before and half behind it, or behind it."""
Loss = Literal["softmax", "sigmoid"]
"""Cross-entropy over scaled cosines (Radford et al. 2021), or one decision for each pair (Zhai et al. 2023)."""


@dataclass(frozen=True)
class TextAbilities:
    """What a text tower can do.

    Attributes:
        causal: whether a token sees only what precedes it, so that classes share what their prompts begin with.
        placements: where a learnt context may stand.
        deep_prompts: whether prompts can be put before later layers.
        low_rank: whether its linear maps can be changed by low-rank adapters.
        branches: whether something can be added to the output of a layer, see `fedgraft.backbones.deltas.Branch`.
    """

    causal: bool = True
    placements: tuple[Placement, ...] = ()
    deep_prompts: bool = False
    low_rank: bool = False
    branches: bool = False


@dataclass(frozen=True)
class ImageAbilities:
    """What an image tower can do.

    Attributes:
        cuts: whether the input of any of its layers can be cached, and the rest computed from it.
        prompts: whether visual prompts can be put before a layer (Jia et al. 2022).
        deep_prompts: whether others can replace them before the layers that follow.
        stops: whether it can be stopped at a layer in a step, so that what follows depends on the layer's input.
        patches: whether it gives the projected features of all patches.
        exits: whether it can end behind any of its layers, so that a classifier can stand there.
        low_rank: whether its linear maps can be changed by low-rank adapters.
        branches: whether something can be added to the output of a layer.
        prunes: whether it can be pruned, so that tickets can be drawn from it.
        merges: whether its patches can be merged on their way through the layers, for devices.
        exports: whether it is exported to devices.
    """

    cuts: bool = False
    prompts: bool = False
    deep_prompts: bool = False
    stops: bool = False
    patches: bool = False
    exits: bool = False
    low_rank: bool = False
    branches: bool = False
    prunes: bool = False
    merges: bool = False
    exports: bool = True


@dataclass(frozen=True)
class Abilities:
    """What a backbone can do.

    Attributes:
        losses: that it was trained for or that suit it; every backbone gives a softmax.
        crops: whether its preprocessing crops the centre of an image, or squeezes the whole of it.
    """

    text: TextAbilities = field(default_factory=TextAbilities)
    image: ImageAbilities = field(default_factory=ImageAbilities)
    losses: tuple[Loss, ...] = ("softmax",)
    crops: bool = True

    def facts(self) -> dict[str, str]:
        """The same in words, for listings."""
        adapted = [name for name, tower in (("text", self.text), ("image", self.image)) if tower.low_rank]
        placements = f"{', '.join(self.text.placements)} (of the class name)" if self.text.placements else "none"
        deep = ", deep" if self.text.deep_prompts else ""
        visual = "shallow, deep" if self.image.deep_prompts else "shallow" if self.image.prompts else "none"
        forms = (("dense", True), ("tickets", self.image.prunes), ("fewer patches", self.image.merges))
        exports = ", ".join(name for name, given in forms if given) if self.image.exports else "no"
        return {
            "prompts": placements + deep,
            "visual prompts": visual,
            "adapters": f"{' and '.join(adapted)} tower" if adapted else "none",
            "exports": exports,
            "text tower": "causal" if self.text.causal else "bidirectional",
            "branches beside layers": "text and image tower" if self.text.branches and self.image.branches else "no",
            "patch features": "yes" if self.image.patches else "no",
            "early classifiers": "yes" if self.image.exits else "no",
            "losses": ", ".join(self.losses),
            "preprocessing": "resize and crop" if self.crops else "resize without a crop",
        }


@dataclass(frozen=True)
class Sizes:
    """The sizes of one backbone, from its configuration alone.

    Attributes:
        positions: tokens that the text tower takes, special ones included.
        text_layers: of the text tower.
        text_width: of a token embedding, and so of a context vector.
        dim: of the joint embedding space.
        image_size: side of the images in pixels.
        image_layers: of the image tower; None where it has no sequence of equal layers.
        image_width: of a token of the image tower, and so of a visual prompt; None as above.
        patches: number of patches; None as above.
        start_tokens: special tokens of the text tower before a context.
    """

    positions: int
    text_layers: int
    text_width: int
    dim: int
    image_size: int
    image_layers: int | None = None
    image_width: int | None = None
    patches: int | None = None
    start_tokens: int = 1


@dataclass(frozen=True)
class Needs:
    """What a run needs of its backbone; every default needs nothing.

    Attributes:
        placement: of its context; None if it learns none.
        context: number of context vectors, as far as it is known without the tokenizer.
        text_depth: layers of the text tower that get prompts, the first included.
        visual_prompts: number of visual prompts before a layer.
        visual_depth: layers of the image tower that get them, the first included.
        low_rank: towers whose linear maps are changed.
        branches: towers in which something is added to the output of layers.
        cut: whether the image tower is cut at a layer.
        stops: whether it is stopped at a layer in every step.
        patches: whether the features of all patches are used.
        exit: the most layers after which the image tower ends early; 0 where it always runs to its end.
        dim: the largest number of leading dimensions that the features are cut to; 0 where they are not.
        prunes: whether a ticket is drawn.
        merge_layer: the last layer of the image tower, counted from 1, in which patches are merged; 0 for none.
        exports: whether the image tower is exported.
        loss: of the training.
    """

    placement: Placement | None = None
    context: int = 0
    text_depth: int = 0
    visual_prompts: int = 0
    visual_depth: int = 0
    low_rank: tuple[Tower, ...] = ()
    branches: tuple[Tower, ...] = ()
    cut: bool = False
    stops: bool = False
    patches: bool = False
    exit: int = 0
    dim: int = 0
    prunes: bool = False
    merge_layer: int = 0
    exports: bool = False
    loss: Loss = "softmax"

    def check(self, name: str, abilities: Abilities, sizes: Sizes) -> None:
        """Compare with a backbone.

        Raises:
            UserError: the first need that it does not meet.
        """
        for sentence in (*self._of_text(abilities.text, sizes), *self._of_image(abilities.image, sizes)):
            raise UserError(f"The backbone {name!r} {sentence}.")
        if self.loss not in abilities.losses:
            known = " and ".join(abilities.losses)
            raise UserError(
                f"The backbone {name!r} has no {self.loss} loss (its checkpoints have no bias); use {known}."
            )

    def _of_text(self, text: TextAbilities, sizes: Sizes) -> list[str]:
        found = []
        if self.placement is not None and self.placement not in text.placements:
            known = " or ".join(text.placements)
            where = f"takes a context {known} the class name, not {self.placement!r}" if known else "takes no prompts"
            found.append(where)
        room = sizes.positions - sizes.start_tokens - 3
        if self.context > room:
            found.append(
                f"has {sizes.positions} positions in its text tower, where a context of {self.context} vectors leaves "
                f"no room for a class name; lower n_ctx to {room} or less"
            )
        if self.text_depth > 1 and not text.deep_prompts:
            found.append("takes prompts before the first layer of its text tower only, and no deep ones")
        if self.text_depth > sizes.text_layers:
            found.append(
                f"has {sizes.text_layers} layers in its text tower, and prompts are asked for {self.text_depth}"
            )
        if "text" in self.low_rank and not text.low_rank:
            found.append("has no linear maps in its text tower that low-rank adapters can change")
        if "text" in self.branches and not text.branches:
            found.append("takes no adapters beside the layers of its text tower")
        return found

    def _of_image(self, image: ImageAbilities, sizes: Sizes) -> list[str]:
        found = []
        if self.visual_prompts and not image.prompts:
            found.append("takes no visual prompts")
        if self.visual_depth > 1 and not image.deep_prompts:
            found.append("takes visual prompts before the first layer of its image tower only, and no deep ones")
        found += self._beyond(sizes.image_layers)
        if "image" in self.low_rank and not image.low_rank:
            found.append("has no linear maps in its image tower that low-rank adapters can change")
        if "image" in self.branches and not image.branches:
            found.append("takes no adapters beside the layers of its image tower")
        if self.cut and not image.cuts:
            found.append("has an image tower that cannot be cut at a layer")
        if self.stops and not image.stops:
            found.append("has an image tower that cannot be stopped at a layer")
        if self.patches and not image.patches:
            found.append("gives no features of patches")
        found += self._of_cuts(image, sizes)
        if self.prunes and not image.prunes:
            found.append("has an image tower that cannot be pruned, so there are no tickets of it; export it dense")
        if self.merge_layer and not image.merges:
            found.append("has an image tower whose patches cannot be merged; export it without --keep-patches")
        if self.exports and not image.exports:
            found.append("has an image tower that cannot be exported")
        return found

    def _beyond(self, layers: int | None) -> list[str]:
        """What needs more layers of the image tower than there are."""
        found = []
        if layers is not None and self.visual_depth > layers:
            found.append(
                f"has {layers} layers in its image tower, and visual prompts are asked for {self.visual_depth}"
            )
        if layers is not None and self.merge_layer > layers:
            found.append(
                f"has {layers} layers in its image tower, and patches are to be merged in layer {self.merge_layer}"
            )
        return found

    def _of_cuts(self, image: ImageAbilities, sizes: Sizes) -> list[str]:
        found = []
        if self.dim > sizes.dim:
            found.append(f"has features of {sizes.dim} dimensions, which cannot be cut to {self.dim}")
        if self.exit and not image.exits:
            found.append("has an image tower that cannot end behind an early layer")
        if sizes.image_layers is not None and self.exit >= sizes.image_layers:
            found.append(
                f"has {sizes.image_layers} layers in its image tower, which cannot end early after {self.exit}"
            )
        return found

    def __or__(self, other: "Needs") -> "Needs":
        """What either needs; where both give a value, this one's."""
        default = Needs()
        own = {each.name: getattr(self, each.name) for each in fields(Needs)}
        changed = {name: value for name, value in own.items() if value != getattr(default, name)}
        return Needs(**{**{each.name: getattr(other, each.name) for each in fields(Needs)}, **changed})


def require_layers(layers: int, first: int, depth: int) -> None:
    """Raise UserError if visual prompts for `depth` layers from layer `first` on exceed an image tower's layers."""
    if first + depth > layers:
        raise UserError(
            f"Visual prompts for {depth} layers from layer {first} on do not fit into an image tower of "
            f"{layers} layers."
        )
