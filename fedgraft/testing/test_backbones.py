"""What every registered backbone family must keep, on the small random sample that it writes itself."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.abilities import Abilities, Needs
from fedgraft.backbones.deltas import Delta, Tower, layer_names
from fedgraft.backbones.family import Family
from fedgraft.backbones.loading import located
from fedgraft.backbones.patch_tower import PatchTower
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.backbones.ticket_backbone import TicketFile
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.merged_tower import MergedTower
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.parity import onnx_embeddings
from fedgraft.edge_export.patch_steps import parse_steps
from fedgraft.edge_export.tickets.patterns import PATTERNS, masked
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.lora_targets import adapted_maps

NAMES = ("red circle", "seven", "laptop computer")


@pytest.fixture(params=list(BACKBONES), ids=lambda family: str(family.name), scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    """Each family that writes a sample."""
    found: Family = request.param
    if found.sample is None:
        pytest.skip("this family writes no sample")
    return found


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sample."""
    path = tmp_path_factory.mktemp("sample")
    assert family.sample is not None
    family.sample(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    """The sample, loaded as a user loads it."""
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def abilities(folder: Path) -> Abilities:
    """What its configuration says that it can do."""
    return located(str(folder)).abilities()


def _pixels(backbone: Backbone) -> torch.Tensor:
    return backbone.preprocess(_images())


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((40, 64), (64, 40), (50, 50))
    return [Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)) for size in sizes]


def test_it_recognizes_its_own_folders_and_no_other(family: Family, folder: Path, tmp_path: Path) -> None:
    assert [other.name for other in BACKBONES if other.recognizes(folder)] == [family.name]
    assert not family.recognizes(tmp_path)


def test_the_fingerprint_is_that_of_the_files(folder: Path, backbone: Backbone) -> None:
    assert len(backbone.fingerprint) == len(backbone.preprocessing) == 64
    assert load_backbone(str(folder)).fingerprint == backbone.fingerprint


def test_features_are_unit_rows_of_one_size(backbone: Backbone) -> None:
    images = backbone.encode_images(backbone.preprocess(_images()))
    texts = backbone.text.encode_classes(NAMES, ("a photo of a {}.", "the {}"))
    assert images.shape == texts.shape == (3, backbone.dim)
    for features in (images, texts):
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-5)
        assert not torch.allclose(features[0], features[1], atol=1e-4), "it tells nothing apart"


def test_an_image_of_a_batch_has_the_features_that_it_has_alone(backbone: Backbone) -> None:
    pixels = backbone.preprocess(_images())
    together = backbone.encode_images(pixels)
    alone = torch.cat([backbone.encode_images(image[None]) for image in pixels])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_sizes_read_from_the_configuration_are_those_of_the_weights(folder: Path, backbone: Backbone) -> None:
    """A plan is refused by them before anything is loaded."""
    known = located(str(folder))
    sizes, abilities = known.sizes(), known.abilities()
    assert (sizes.dim, sizes.text_width) == (backbone.dim, backbone.text.width)
    assert (sizes.positions, sizes.start_tokens) == (backbone.text.max_tokens, backbone.text.start_tokens)
    assert sizes.image_size in backbone.preprocess(_images()).shape[-2:]
    if abilities.image.cuts:
        assert sizes.image_layers is not None
        assert backbone.image_shape(Representation(layer=0))[-1] == sizes.image_width
    if abilities.image.patches:
        assert backbone.image_shape(Representation(patches=True)) == (1 + (sizes.patches or 0), backbone.dim)


def test_one_folder_can_do_no_more_than_its_family_says(family: Family, folder: Path) -> None:
    family_says, own = family.abilities, family.abilities_of(folder)
    assert set(own.text.placements) <= set(family_says.text.placements)
    assert set(own.losses) <= set(family_says.losses)
    for tower in ("text", "image"):
        most, found = asdict(getattr(family_says, tower)), asdict(getattr(own, tower))
        assert all(most[name] >= value for name, value in found.items() if name not in ("placements", "causal"))


def test_a_text_as_a_prompt_has_the_features_of_the_text(abilities: Abilities, backbone: Backbone) -> None:
    """The exact fast path: what all begin with is encoded once."""
    if not abilities.text.placements:
        pytest.skip("its text tower takes no prompts")
    texts = [f"a photo of a {name}." for name in NAMES]
    context, tokens = backbone.text.tokenize_texts(texts)
    assert torch.allclose(
        backbone.text.encode_prompts(context[None], tokens)[0], backbone.text.encode_texts(texts), atol=1e-5
    )


def test_a_context_learns_wherever_the_family_says_that_it_may_stand(abilities: Abilities, backbone: Backbone) -> None:
    tokens = backbone.text.tokenize_names(NAMES)
    for placement in abilities.text.placements:
        context = torch.zeros(1, 2, backbone.text.width, requires_grad=True)
        features = backbone.text.encode_prompts(context, tokens, placement=placement)
        assert features.shape == (1, 3, backbone.dim)
        (gradient,) = torch.autograd.grad(features[0, 0, 0], context)
        assert gradient.norm() > 0


def test_several_contexts_in_one_pass_have_the_features_of_each_alone(abilities: Abilities, backbone: Backbone) -> None:
    if not abilities.text.placements:
        pytest.skip("its text tower takes no prompts")
    tokens = backbone.text.tokenize_names(NAMES)
    contexts = 0.1 * torch.randn(3, 2, backbone.text.width, generator=torch.Generator().manual_seed(0))
    together = backbone.text.encode_prompts(contexts, tokens)
    alone = torch.cat([backbone.text.encode_prompts(context[None], tokens) for context in contexts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_deep_prompts_learn_where_the_family_takes_them(folder: Path, backbone: Backbone) -> None:
    known = located(str(folder))
    if not known.abilities().text.deep_prompts or known.sizes().text_layers < 2:
        pytest.skip("its text tower takes no deep prompts")
    tokens = backbone.text.tokenize_names(NAMES)
    deep = torch.zeros(1, 1, 2, backbone.text.width, requires_grad=True)
    features = backbone.text.encode_prompts(torch.zeros(1, 2, backbone.text.width), tokens, deep=deep)
    (gradient,) = torch.autograd.grad(features[0, 0, 0], deep)
    assert gradient.norm() > 0


def test_low_rank_adapters_find_maps_in_the_towers_that_the_family_names(
    abilities: Abilities, backbone: Backbone
) -> None:
    assert bool(backbone.linear_maps("text")) == abilities.text.low_rank
    assert bool(backbone.linear_maps("image")) == abilities.image.low_rank
    assert abilities.image.cuts or not abilities.image.low_rank, "a change is trained from a cut on"


@pytest.mark.parametrize("tower", ["text", "image"])
def test_the_default_targets_of_low_rank_methods_name_maps_of_every_layer(
    tower: Tower, abilities: Abilities, backbone: Backbone
) -> None:
    """They are CLIP's names; a family that has others says what they mean (`Backbone.map_names`)."""
    if not getattr(abilities, tower).low_rank:
        pytest.skip(f"its {tower} tower takes no low-rank adapters")
    every = {found.layer for found in backbone.linear_maps(tower).values()}
    assert {
        found.layer for found in adapted_maps(backbone, LoraOptions.model_validate({"rank": 1}), tower).values()
    } == every


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_low_rank_change_reaches_every_map_and_stays_out_of_the_backbone(
    tower: Tower, abilities: Abilities, backbone: Backbone
) -> None:
    if not getattr(abilities, tower).low_rank:
        pytest.skip(f"its {tower} tower takes no low-rank adapters")
    maps = backbone.linear_maps(tower)
    before = {name: found.weight.clone() for name, found in maps.items()}
    generator = torch.Generator().manual_seed(0)
    changed = {
        name: Delta(
            0.1 * torch.randn(1, 2, weight.shape[1], generator=generator),
            (0.1 * torch.randn(1, weight.shape[0], 2, generator=generator)).requires_grad_(),
        )
        for name, (_, weight) in maps.items()
    }
    features = _changed_features(backbone, tower, changed)
    gradients = torch.autograd.grad(features.flatten()[0], [delta.B for delta in changed.values()])
    assert all(gradient.norm() > 0 for gradient in gradients)
    rows = {name: torch.ones(1, len(weight)).requires_grad_() for name, (_, weight) in maps.items()}
    scaled = {name: Delta(delta.A, delta.B.detach(), scale=rows[name]) for name, delta in changed.items()}
    same = _changed_features(backbone, tower, scaled)
    assert torch.allclose(same, features, atol=1e-5)
    assert all(slope.norm() > 0 for slope in torch.autograd.grad(same.flatten()[0], list(rows.values())))
    assert all(torch.equal(found.weight, before[name]) for name, found in maps.items())


def _changed_features(backbone: Backbone, tower: Tower, changed: dict[str, Delta]) -> torch.Tensor:
    if tower == "text":
        tokens = backbone.text.tokenize_names(NAMES)
        return backbone.text.encode_prompts(torch.zeros(1, 2, backbone.text.width), tokens, deltas=changed)
    form = Representation(layer=0)
    return backbone.finish_images(backbone.represent_images(_pixels(backbone), form), form, changed)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_branch_beside_a_layer_reaches_every_layer(tower: Tower, abilities: Abilities, backbone: Backbone) -> None:
    """A branch that is left out in silence would train nothing."""
    if not getattr(abilities, tower).branches:
        pytest.skip(f"its {tower} tower takes no branches")
    names = layer_names(backbone.linear_maps(tower))
    factors = [torch.full((), 0.1, requires_grad=True) for _ in names]
    changed = {name: partial(torch.mul, factor) for name, factor in zip(names, factors, strict=True)}
    if tower == "text":
        tokens = backbone.text.tokenize_names(NAMES)
        features = backbone.text.encode_prompts(torch.zeros(1, 2, backbone.text.width), tokens, deltas=changed)
    else:
        form = Representation(layer=0)
        features = backbone.finish_images(backbone.represent_images(_pixels(backbone), form), form, changed)
    gradients = torch.autograd.grad(features.flatten()[0], factors)
    assert all(gradient.norm() > 0 for gradient in gradients)


def test_a_tower_stopped_at_a_layer_goes_on_as_if_it_had_not_been(folder: Path, backbone: Backbone) -> None:
    known, form = located(str(folder)), Representation(layer=0)
    image, sizes = known.abilities().image, known.sizes()
    if not image.stops:
        with pytest.raises(UserError, match="cannot be stopped"):
            backbone.advance_images(torch.zeros(1, 2, 4), form, 1, torch.zeros(1, 1, 2, 4))
        return
    kept = backbone.represent_images(_pixels(backbone), form)
    for layer in range(1, sizes.image_layers or 0):
        prompts = torch.randn(1, layer + 1, 2, sizes.image_width or 0, generator=torch.Generator().manual_seed(layer))
        stopped = backbone.advance_images(kept, form, layer, prompts[:, :layer])
        assert stopped.shape == kept.shape
        assert stopped.dtype == torch.float32
        features = backbone.finish_images(stopped, Representation(layer=layer), prompts=prompts[:, layer:])
        assert torch.allclose(features, backbone.finish_images(kept, form, prompts=prompts), atol=1e-5)


def test_what_is_cached_below_a_layer_ends_in_the_same_features(folder: Path, backbone: Backbone) -> None:
    known, pixels = located(str(folder)), _pixels(backbone)
    if not known.abilities().image.cuts:
        with pytest.raises(UserError, match="cannot be cut"):
            backbone.represent_images(pixels, Representation(layer=0))
        return
    for layer in range(known.sizes().image_layers or 0):
        form = Representation(layer=layer)
        kept = backbone.represent_images(pixels, form)
        assert kept.shape[1:] == backbone.image_shape(form)
        assert kept.dtype == torch.float32
        assert torch.allclose(backbone.finish_images(kept, form), backbone.encode_images(pixels), atol=1e-5)


def test_visual_prompts_learn_where_the_family_takes_them(folder: Path, backbone: Backbone) -> None:
    known, pixels = located(str(folder)), _pixels(backbone)
    image, sizes = known.abilities().image, known.sizes()
    form = Representation(layer=0) if image.cuts else FEATURES
    kept = backbone.represent_images(pixels, form)
    if not image.prompts:
        with pytest.raises(UserError, match="visual prompts"):
            backbone.finish_images(kept, form, prompts=torch.zeros(1, 1, 2, sizes.image_width or 4))
        return
    assert sizes.image_layers is not None
    depth = sizes.image_layers if image.deep_prompts else 1
    assert sizes.image_width is not None
    generator = torch.Generator().manual_seed(0)
    prompts = (0.1 * torch.randn(3, depth, 2, sizes.image_width, generator=generator)).requires_grad_()
    features = backbone.finish_images(kept, form, prompts=prompts)
    (gradient,) = torch.autograd.grad(features[:, 0].sum(), prompts)
    assert all(gradient[:, layer].norm() > 0 for layer in range(depth))
    alone = torch.cat(
        [backbone.finish_images(kept[row : row + 1], form, prompts=prompts[row : row + 1]) for row in range(3)]
    )
    assert torch.allclose(features, alone, atol=1e-5)
    with pytest.raises(UserError, match=f"{sizes.image_layers + 1} layers"):
        backbone.finish_images(kept, form, prompts=prompts[:, :1].expand(-1, sizes.image_layers + 1, -1, -1))


def test_the_features_of_patches_stand_behind_those_of_the_image(abilities: Abilities, backbone: Backbone) -> None:
    form, pixels = Representation(patches=True), _pixels(backbone)
    if not abilities.image.patches:
        with pytest.raises(UserError, match="patches"):
            backbone.represent_images(pixels, form)
        return
    kept = backbone.represent_images(pixels, form)
    assert kept.shape[1:] == backbone.image_shape(form)
    assert torch.allclose(kept.norm(dim=-1), torch.ones(kept.shape[:2]), atol=1e-5)
    assert torch.allclose(kept[:, 0], backbone.encode_images(pixels), atol=1e-5)
    assert torch.equal(backbone.finish_images(kept, form), kept[:, 0])


def test_a_tower_that_can_end_early_is_the_whole_one_at_its_end(abilities: Abilities, backbone: Backbone) -> None:
    form, pixels = Representation(exits=(1,)), _pixels(backbone)
    if not abilities.image.exits:
        for refused in (
            partial(backbone.represent_images, pixels, form),
            backbone.image_projection,
            partial(backbone.reprojected_encoder, torch.eye(backbone.dim)),
        ):
            with pytest.raises(UserError, match="cannot end behind an early layer"):
                refused()
        return
    kept, projection = backbone.represent_images(pixels, form), backbone.image_projection()
    assert kept.shape[1:] == backbone.image_shape(form)
    whole = backbone.encode_images(pixels)
    assert torch.allclose(backbone.finish_images(kept, form), whole, atol=1e-5)
    assert torch.allclose(torch.nn.functional.normalize(kept[:, -1] @ projection.mT, dim=-1), whole, atol=1e-5)
    few = projection[:5]
    for row, layers in ((0, 1), (1, None)):
        encoder = backbone.reprojected_encoder(few, layers)
        expected = torch.nn.functional.normalize(kept[:, row] @ few.mT, dim=-1)
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)
    assert not torch.equal(projection, backbone.image_projection().add_(1))
    assert torch.equal(projection, backbone.image_projection())


def test_a_sigmoid_loss_has_a_bias(abilities: Abilities, backbone: Backbone) -> None:
    assert "softmax" in abilities.losses
    assert ("sigmoid" in abilities.losses) == (backbone.logit_bias is not None)


def test_the_encoder_for_devices_has_the_features_of_the_backbone(abilities: Abilities, backbone: Backbone) -> None:
    if not abilities.image.exports:
        with pytest.raises(UserError, match="cannot be exported"):
            backbone.image_encoder()
        return
    pixels, encoder = _pixels(backbone), backbone.image_encoder()
    assert not encoder.training
    assert all(tensor.dtype == torch.float32 for tensor in encoder.state_dict().values() if tensor.is_floating_point())
    assert torch.allclose(encoder(pixels), backbone.encode_images(pixels), atol=1e-5)
    assert torch.equal(backbone.image_encoder()(pixels), encoder(pixels))


def test_an_encoder_takes_over_changed_weights_and_prompts(folder: Path, backbone: Backbone) -> None:
    """What an adapter has learnt reaches the device."""
    known, pixels = located(str(folder)), _pixels(backbone)
    image, sizes, form = known.abilities().image, known.sizes(), Representation(layer=0)
    if not image.exports or not image.cuts:
        pytest.skip("nothing can be learnt in its image tower")
    kept = backbone.represent_images(pixels, form)
    if image.low_rank:
        name, (_, weight) = list(backbone.linear_maps("image").items())[-1]
        left, right = (
            torch.randn(weight.shape[0], 1, generator=torch.Generator().manual_seed(0)),
            0.1 * torch.ones(1, weight.shape[1]),
        )
        changed = backbone.finish_images(kept, form, {name: Delta(right[None], left[None])})
        encoder = backbone.image_encoder({f"{name}.weight": weight + left @ right})
        assert torch.allclose(encoder(pixels), changed, atol=1e-5)
        assert not torch.allclose(changed, backbone.encode_images(pixels), atol=1e-4)
    if image.prompts:
        assert sizes.image_width is not None
        prompts = torch.randn(1, 2, sizes.image_width, generator=torch.Generator().manual_seed(0))
        prompted = backbone.finish_images(kept, form, prompts=prompts[None])
        assert torch.allclose(backbone.image_encoder(prompts=prompts)(pixels), prompted, atol=1e-5)
    else:
        with pytest.raises(UserError, match="visual prompts"):
            backbone.image_encoder(prompts=torch.zeros(1, 2, sizes.image_width or 4))


def test_the_encoder_becomes_onnx_and_the_device_prepares_its_pixels(abilities: Abilities, backbone: Backbone) -> None:
    """What `fedgraft export` needs of a family: a traceable module, and a preprocessing with Hugging Face's keys."""
    if not abilities.image.exports:
        pytest.skip("its image tower is not exported")
    preprocessing = Preprocessing.from_config(backbone.preprocessor_config())
    assert (preprocessing.crop is not None) == abilities.crops
    pixels = preprocessing.batch(_images())
    assert np.array_equal(pixels, backbone.preprocess(_images()).numpy())
    model = export_onnx(backbone.image_encoder(), pixels.shape[2:], {})
    embeddings = onnx_embeddings(model.SerializeToString(), pixels)
    assert np.allclose(embeddings, backbone.encode_images(torch.from_numpy(pixels)).numpy(), atol=1e-4)


def test_a_tower_that_can_be_pruned_is_one_for_tickets(
    abilities: Abilities, backbone: Backbone, tmp_path: Path
) -> None:
    if not abilities.image.prunes:
        with pytest.raises(UserError, match="cannot be pruned"):
            backbone.vision_tower()
        return
    pixels = _pixels(backbone)
    tower = backbone.vision_tower()
    assert torch.allclose(tower(pixels), backbone.encode_images(pixels), atol=1e-5)
    pattern = PATTERNS["structured"]
    kept = pattern.kept(pattern.magnitudes(tower), 0.5)
    small = pattern.cut(tower, kept)
    assert torch.allclose(small(pixels), masked(tower, pattern.masks(tower, kept))(pixels), atol=1e-5)
    TicketFile("its source", {}, small).write(tmp_path)
    assert TicketFile.read(tmp_path).tower.digest() == small.digest()


def test_a_tower_whose_patches_can_be_merged_does_so_for_devices(abilities: Abilities, backbone: Backbone) -> None:
    """Without a step it computes the same; with one, ONNX computes what torch does, of fewer patches."""
    tower = backbone.image_encoder() if abilities.image.exports else None
    assert isinstance(tower, PatchTower) == abilities.image.merges
    if not isinstance(tower, PatchTower):
        return
    pixels = _pixels(backbone)
    assert torch.equal(MergedTower(tower, ())(pixels), tower(pixels))
    merged = MergedTower(tower, parse_steps("0.5@1")).eval()
    height, width = pixels.shape[2:]
    model = export_onnx(merged, (height, width), {}).SerializeToString()
    assert np.allclose(onnx_embeddings(model, pixels.numpy()), merged(pixels).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        (Needs(placement="before"), lambda can: "before" in can.text.placements),
        (Needs(placement="middle"), lambda can: "middle" in can.text.placements),
        (Needs(placement="behind"), lambda can: "behind" in can.text.placements),
        (Needs(text_depth=2), lambda can: can.text.deep_prompts),
        (Needs(text_depth=1000), lambda can: False),
        (Needs(context=100_000), lambda can: False),
        (Needs(low_rank=("text",)), lambda can: can.text.low_rank),
        (Needs(low_rank=("image",)), lambda can: can.image.low_rank),
        (Needs(branches=("text",)), lambda can: can.text.branches),
        (Needs(branches=("image",)), lambda can: can.image.branches),
        (Needs(cut=True), lambda can: can.image.cuts),
        (Needs(stops=True), lambda can: can.image.stops),
        (Needs(visual_prompts=2, visual_depth=1), lambda can: can.image.prompts),
        (Needs(visual_prompts=2, visual_depth=1000), lambda can: False),
        (Needs(patches=True), lambda can: can.image.patches),
        (Needs(prunes=True), lambda can: can.image.prunes),
        (Needs(merge_layer=1), lambda can: can.image.merges),
        (Needs(merge_layer=100_000), lambda can: False),
        (Needs(exports=True), lambda can: can.image.exports),
        (Needs(loss="sigmoid"), lambda can: "sigmoid" in can.losses),
    ],
    ids=lambda value: str(value) if isinstance(value, Needs) else "",
)
def test_what_it_cannot_do_is_refused_in_one_line_before_anything_is_loaded(
    needs: Needs, able: Callable[[Abilities], bool], folder: Path
) -> None:
    known = located(str(folder))
    if able(known.abilities()) and needs.text_depth <= known.sizes().text_layers:
        known.require(needs)
        return
    with pytest.raises(UserError) as error:
        known.require(needs)
    sentence = str(error.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
