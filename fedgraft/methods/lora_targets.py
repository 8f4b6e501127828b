"""Which linear maps of a tower a low-rank method adapts, by PEFT's own matching."""

from fedgraft.backbones import Backbone
from fedgraft.backbones.deltas import LinearMap, Tower
from fedgraft.core.errors import UserError
from fedgraft.methods.lora_options import LoraOptions


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
