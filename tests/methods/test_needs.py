"""What a method needs and a backbone lacks is said in one line, before anything is loaded or any image is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedgraft.backbones.abilities import Abilities, ImageAbilities, Needs, Sizes, TextAbilities
from fedgraft.backbones.clip.family import FAMILY
from fedgraft.config.registry import BACKBONES
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.ticket_folder import draw_into
from fedgraft.methods.plan import Plan
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.preparation import prepare

PLAIN = Abilities(TextAbilities(placements=("before",)), ImageAbilities())
SIZES = Sizes(
    positions=64, text_layers=6, text_width=32, dim=16, image_size=48, image_layers=4, image_width=32, patches=9
)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder of CLIP's is one of a family that can do little, and to load it or to read an image fails."""

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was loaded")

    poor = replace(FAMILY, abilities=PLAIN, load=load)
    monkeypatch.setattr(type(BACKBONES), "__iter__", lambda self: iter([poor]))


def _refused(**settings: Any) -> str:
    with pytest.raises(UserError) as error:
        Plan.of(RunConfig.build(settings)).require_backbone()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": "promptfl", "method_options": {"placement": "behind"}},
            "takes a context before the class name, not",
        ),
        ({"method": "fedpgp", "method_options": {"n_ctx": 61}}, "64 positions.*lower n_ctx to 60 or less"),
        ({"method": "fedit"}, "text tower that low-rank adapters can change"),
        ({"method": "fedit", "method_options": {"tower": "image"}}, "image tower that low-rank adapters can change"),
        ({"method": "promptfl", "loss": "sigmoid"}, "no sigmoid loss"),
        ({"method": "promptfl", "backbone_options": {"x": 1}}, "x"),
    ],
)
def test_a_plan_refuses_what_the_family_cannot_do(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    sentence = _refused(**settings)
    with pytest.raises(UserError, match=said):
        raise UserError(sentence)

    def no_images(plan: Plan) -> Examples:
        raise AssertionError("images were read")

    with pytest.raises(UserError, match=said):
        prepare(RunConfig.build(settings), tmp_path / "run", False, Observer(), open_examples=no_images)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_it_can_do_is_not_refused() -> None:
    for settings in (
        {"method": "promptfl"},
        {"method": "fedpgp", "method_options": {"n_ctx": 60}},
        {"method": "zeroshot"},
    ):
        Plan.of(RunConfig.build(settings)).require_backbone()


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(placement="middle"), "takes a context before the class name, not 'middle'"),
        (Needs(text_depth=2), "no deep ones"),
        (Needs(text_depth=7), "has 6 layers in its text tower, and prompts are asked for 7"),
        (Needs(visual_prompts=2, visual_depth=1), "takes no visual prompts"),
        (Needs(visual_depth=5), "has 4 layers in its image tower, and visual prompts are asked for 5"),
        (Needs(cut=True), "cannot be cut at a layer"),
        (Needs(patches=True), "no features of patches"),
        (Needs(exit=2), "cannot end behind an early layer"),
        (Needs(dim=17), "has features of 16 dimensions, which cannot be cut to 17"),
        (Needs(prunes=True), "cannot be pruned, so there are no tickets of it; export it dense"),
    ],
)
def test_each_need_has_its_own_sentence(needs: Needs, said: str) -> None:
    able = Abilities(
        TextAbilities(placements=("before",), deep_prompts=True), ImageAbilities(prompts=True, deep_prompts=True)
    )
    abilities = able if needs.text_depth == 7 or needs.visual_depth == 5 else PLAIN
    with pytest.raises(UserError) as error:
        needs.check("folder/x", abilities, SIZES)
    assert str(error.value).startswith("The backbone 'folder/x' ")
    assert said in str(error.value)


def test_needs_add_up() -> None:
    both = Needs(exports=True) | Needs(placement="before", context=4)
    assert both == Needs(placement="before", context=4, exports=True)
    assert Needs() | both == both


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_ticket_of_a_family_without_them_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tickets of it"):
        draw_into(tmp_path / "ticket", "mini", TicketConfig.build({}))
    directory = RunDirectory(tmp_path / "run")
    directory.create(RunConfig(method="promptfl", sites=2))
    for options in ({"sparsity": 0.5}, {"ticket": "robust"}):
        with pytest.raises(UserError, match="no tickets of it"):
            export_bundle(directory.path, tmp_path / "out", BundleOptions.build(options))
    assert not (tmp_path / "out").exists()
