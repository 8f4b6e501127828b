"""Low-rank adapters against PEFT itself: features, gradients, saved folders; their sizes; and what is refused."""

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.clip.family import clip_linear_maps
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.representation import Representation
from fedgraft.backbones.ticket_backbone import PrunedBackbone, TicketFile
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import AdapterContext, Batch
from fedgraft.methods.lora import LoraAdapter
from fedgraft.methods.merging_lora import MergingAdapter
from fedgraft.methods.peft_folder import save_as_peft
from fedgraft.methods.vocabulary import Vocabulary

NAMES = ("blue circle", "green dotted heart", "seven", "x")
TEMPLATES = ("a photo of a {}.", "{} in a photo, or the like", "a picture of one {}")
CLASSES = (0, 1, 3)
LOW_RANK = ("fedit", "ffa-lora", "fedsa-lora", "fedex-lora", "flora", "flexlora")


def _adapter(method: str, backbone: Backbone, context: AdapterContext | None = None, **options: object) -> LoraAdapter:
    """With B, and what is merged, as if much had been learnt."""
    loaded = METHODS.load(method)
    vocabulary = Vocabulary(backbone, NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(4)
    parsed = loaded.parse_options({"templates": 0, **options})
    adapter = cast(LoraAdapter, loaded.adapter(vocabulary, parsed, generator, context))
    learnt = {**adapter.server_state(), **adapter.shared(), **adapter.personal()}
    sizes = {"lora_B": 0.1, "merged": 0.005}
    for name, value in learnt.items():
        if (size := sizes.get(name.rpartition(".")[2])) is not None:
            adapter.load({name: size * torch.randn(value.shape, generator=generator)})
    return adapter


def _peft(folder: Path, adapter: LoraAdapter) -> PeftModel:
    """PEFT's model with the adapter's factors, over weights that already have what is merged."""
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    if isinstance(adapter, MergingAdapter):
        for name, value in adapter.merged.items():
            model.get_submodule(name).weight += adapter.options.alpha * value
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.options.alpha, target_modules=list(adapter.factors))
    peft = get_peft_model(model, config)
    for name, factors in adapter.factors.items():
        module = model.get_submodule(name)
        module.lora_A["default"].weight.data.copy_(factors.lora_A)
        module.lora_B["default"].weight.data.copy_(factors.lora_B)
    return peft


def _plain_classes(model: CLIPModel, folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    features = []
    for template in TEMPLATES:
        tokens = tokenizer([template.format(NAMES[i]) for i in CLASSES], padding=True, return_tensors="pt")
        features.append(F.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1))
    return F.normalize(torch.stack(features).mean(0), dim=-1)


def _plain_images(model: CLIPModel, pixels: Tensor) -> Tensor:
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


@pytest.mark.parametrize("tower", ["text", "image", "both"])
@pytest.mark.parametrize("method", ["fedit", "flora"])
@pytest.mark.parametrize("options", [{}, {"targets": "all-linear", "rank": 3}, {"targets": "k_proj,fc2", "layers": 1}])
def test_loss_and_gradients_are_those_of_pefts_model(
    method: str, tower: str, options: dict[str, object], random_clip_folder: Path
) -> None:
    folder = random_clip_folder if tower == "text" else mini_folder()
    backbone = load_backbone(str(folder))
    adapter = _adapter(method, backbone, tower=tower, **options)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    pixels = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    images = backbone.represent_images(pixels, adapter.representation(backbone, adapter.options))
    model = _peft(folder, adapter).base_model.model
    plain_images, plain_classes = _plain_images(model, pixels), _plain_classes(model, folder)
    assert torch.allclose(adapter.image_features(images), plain_images, atol=1e-5)
    assert torch.allclose(adapter.class_features(CLASSES), plain_classes, atol=1e-5)
    expected = F.cross_entropy(backbone.logit_scale * plain_images @ plain_classes.mT, labels)
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()
    expected.backward()
    for name, factors in adapter.factors.items():
        module = model.get_submodule(name)
        for mine, other in (
            (factors.lora_A, module.lora_A["default"].weight),
            (factors.lora_B, module.lora_B["default"].weight),
        ):
            assert mine.grad is not None
            assert (mine.grad - other.grad).norm() <= 1e-4 * other.grad.norm()


@pytest.mark.parametrize("method", LOW_RANK)
def test_a_saved_adapter_is_opened_by_peft_and_gives_the_same_features(
    method: str, mini: Backbone, tmp_path: Path
) -> None:
    adapter = _adapter(method, mini, tower="both", layers=1)
    save_as_peft(adapter.as_peft(), tmp_path, "mini")
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(mini_folder()).eval(), tmp_path).base_model.model
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = adapter.image_features(mini.represent_images(pixels, adapter.representation(mini, adapter.options)))
        assert torch.allclose(images, _plain_images(model, pixels), atol=1e-5)
        assert torch.allclose(adapter.class_features(CLASSES), _plain_classes(model, mini_folder()), atol=1e-5)
        assert not torch.allclose(images, mini.encode_images(pixels), atol=1e-3)


@pytest.mark.parametrize("method", ["fedsa-lora", "fedex-lora"])
def test_merged_weights_give_the_same_features_without_an_adapter(method: str, mini: Backbone) -> None:
    """What an export takes."""
    adapter = _adapter(method, mini, tower="both")
    model = CLIPModel.from_pretrained(mini_folder()).eval()
    weights = {**adapter.merged_weights("image"), **adapter.merged_weights("text")}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = adapter.image_features(mini.represent_images(pixels, Representation(layer=0)))
        assert torch.allclose(images, _plain_images(model, pixels), atol=1e-5)
        assert torch.allclose(adapter.vision_tower()(pixels), images, atol=1e-5)
        assert torch.allclose(adapter.class_features(CLASSES), _plain_classes(model, mini_folder()), atol=1e-5)


def test_a_tickets_backbone_takes_adapters_of_its_text_tower(mini: Backbone) -> None:
    ticket = TicketFile("mini", {"source_fingerprint": mini.fingerprint}, mini.vision_tower())
    pruned = PrunedBackbone("ticket", mini, ticket)
    on_ticket, dense = _adapter("fedit", pruned), _adapter("fedit", mini)
    assert torch.equal(on_ticket.class_features(CLASSES), dense.class_features(CLASSES))
    with pytest.raises(UserError, match="image tower"):
        _adapter("fedit", pruned, tower="image")


@pytest.mark.parametrize("tower", ["text", "both"])
def test_sites_of_different_ranks_go_through_one_pass(tower: str, mini: Backbone) -> None:
    adapters = [
        _adapter("flora", mini, AdapterContext(site=site), ranks="2,5,1", tower=tower, layers=1) for site in range(3)
    ]
    for adapter in adapters[1:]:
        adapter.load({f"{name}.merged": value for name, value in adapters[0].merged.items()})
    assert [adapter.rank for adapter in adapters] == [2, 5, 1]
    form = adapters[0].representation(mini, adapters[0].options)
    images = torch.randn(4, *mini.image_shape(form), generator=torch.Generator().manual_seed(0))
    batches = [Batch(images, torch.tensor([0, 1, 2, 0]))] * 3
    for adapter, loss in zip(adapters, LoraAdapter.losses(adapters, batches, CLASSES), strict=True):
        parameters = list(adapter.parameters())
        together = torch.autograd.grad(loss, parameters, retain_graph=True)
        alone = torch.autograd.grad(adapter.loss(*batches[0], CLASSES), parameters)
        assert all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(together, alone, strict=True))


def test_nothing_reaches_the_backbone(mini: Backbone) -> None:
    """Two adapters are alive, one has learnt; the backbone and the other one are what they were."""
    before = mini.text.encode_texts(["a photo of a seven."])
    _adapter("fedex-lora", mini).class_features(CLASSES)
    loaded = METHODS.load("fedit")
    options = loaded.parse_options({"templates": 0})
    fresh = loaded.adapter(Vocabulary(mini, NAMES, TEMPLATES), options, torch.Generator())
    assert torch.equal(mini.text.encode_texts(["a photo of a seven."]), before)
    assert torch.allclose(fresh.class_features(CLASSES), fresh.vocabulary.zero_shot[list(CLASSES)], atol=1e-5)


def test_a_flora_site_draws_a_new_a_every_round_and_ffa_one_for_all(mini: Backbone) -> None:
    def first(method: str, context: AdapterContext, seed: int = 0) -> Tensor:
        loaded, vocabulary = METHODS.load(method), Vocabulary(mini, NAMES, TEMPLATES)
        adapter = loaded.adapter(vocabulary, loaded.options(), torch.Generator().manual_seed(seed), context)
        return next(value for name, value in adapter.state_dict().items() if name.endswith("lora_A"))

    places = [(0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 2, 1), (1, 0, 1, 1), (0, 1, 1, 1)]  # seed, fold, site, round
    drawn = [first("flora", AdapterContext(*place)).numpy().tobytes() for place in places]
    assert len(set(drawn)) == len(places)
    assert first("flora", AdapterContext(*places[0]), seed=9).numpy().tobytes() == drawn[0]
    assert torch.equal(first("ffa-lora", AdapterContext(0, 0, 1), 1), first("ffa-lora", AdapterContext(0, 0, None), 2))
    assert not torch.equal(first("ffa-lora", AdapterContext(0)), first("ffa-lora", AdapterContext(1)))


def test_bfloat16_weights_stay_close(mini: Backbone) -> None:
    """As prompts do: within 0.02."""
    full, half = (
        _adapter("fedex-lora", backbone, tower="both") for backbone in (mini, load_backbone("mini", "bfloat16"))
    )
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    results = []
    for adapter in (full, half):
        images = adapter.image_features(adapter.vocabulary.backbone.represent_images(pixels, Representation(layer=0)))
        results.append(torch.cat([images, adapter.class_features(CLASSES)]))
        results[-1].pow(3).sum().backward()
        assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert results[1].dtype == torch.float32
    assert torch.allclose(*results, atol=0.02)
    assert not torch.equal(*results)


# --- sizes ----------------------------------------------------------------------------------------


class _ViTB16(Backbone):
    """The shapes of ViT-B/16, and no weights."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        config = CLIPConfig()
        config.vision_config.patch_size = 16
        with torch.device("meta"):
            self._model = CLIPModel(config)

    def linear_maps(self, tower: str) -> dict[str, object]:
        return clip_linear_maps(self._model, tower)

    preprocess = encode_images = None


@pytest.mark.parametrize(
    ("method", "options", "trained", "shared"),
    [  # 12 layers, two maps: text 512 -> 512, image 768 -> 768; A and B of rank r have r x 512 each
        ("fedit", {}, 12 * 2 * 2 * 4 * 512, 12 * 2 * 2 * 4 * 512),
        ("ffa-lora", {}, 12 * 2 * 4 * 512, 12 * 2 * 4 * 512),
        ("fedsa-lora", {}, 98_304, 49_152),
        ("fedex-lora", {"rank": 8}, 196_608, 196_608),
        ("flora", {"ranks": "4,16"}, 16 * 24_576, 16 * 24_576),
        ("flexlora", {"layers": 2}, 2 * 2 * 2 * 4 * 512, 2 * 2 * 2 * 4 * 512),
        ("fedit", {"targets": "all-linear"}, 12 * 4 * (4 * 1024 + 2 * 2560), 442_368),
        ("fedsa-lora", {"tower": "image"}, 12 * 2 * 2 * 4 * 768, 73_728),
        ("fedsa-lora", {"tower": "both"}, 98_304 + 147_456, 49_152 + 73_728),
    ],
)
def test_parameters_at_vit_b16_are_as_many_as_by_hand(
    method: str, options: dict[str, object], trained: int, shared: int
) -> None:
    loaded = METHODS.load(method)
    adapter = loaded.adapter(Vocabulary(_ViTB16(), NAMES, TEMPLATES), loaded.parse_options(options), torch.Generator())
    assert sum(parameter.numel() for parameter in adapter.parameters()) == trained
    assert sum(value.numel() for value in adapter.shared().values()) == shared


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fedit", {"rank": 129}, ["rank 129", "128 x 128", "at most 128"]),
        ("flora", {"ranks": "4,500"}, ["rank 500", "at most 128"]),
        ("fedit", {"targets": "query"}, ["'query'", "text tower", "q_proj", "fc2"]),
        ("fedit", {"targets": "q_proj,", "tower": "image"}, ["''", "image tower"]),
        ("fedit", {"layers": 3}, ["layers=3", "2"]),
        ("fedit", {"ranks": "4,8"}, ["'ranks'", "'fedit'", "4, 8", "flexlora"]),
        ("ffa-lora", {"ranks": "2,3"}, ["'ranks'", "flora"]),
        ("fedsa-lora", {"ranks": "2,3"}, ["'ranks'", "flora"]),
        ("fedex-lora", {"ranks": "2,3"}, ["'ranks'", "flora"]),
        ("flora", {"ranks": "4,x"}, ["'ranks'", "whole numbers"]),
        ("flexlora", {"ranks": "4,0"}, ["'ranks'", "positive"]),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_trained(
    method: str, options: dict[str, object], said: list[str], mini: Backbone
) -> None:
    loaded = METHODS.load(method)
    with pytest.raises(UserError) as caught:
        loaded.adapter(Vocabulary(mini, NAMES, TEMPLATES), loaded.parse_options(options), torch.Generator())
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value)
