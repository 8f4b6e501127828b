"""Fewer patches: what is merged, what is refused, and what of it reaches a bundle."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.core.errors import UserError
from fedgraft.device.bundle import open_bundle
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.merged_tower import MergedTower, merge
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.patch_steps import PatchStep, parse_steps
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.towers import with_patches


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def tower(mini: Backbone) -> VisionTower:
    tower = mini.vision_tower()
    assert isinstance(tower, VisionTower)
    return tower


def _merged_by_hand(patches: Tensor, sizes: Tensor, keys: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Pair after pair, as the paper's five steps read, for one image."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    even, odd = list(range(0, len(patches), 2)), list(range(1, len(patches), 2))
    best = {i: max((float(unit[i] @ unit[j]), j) for j in odd) for i in even}
    joining = sorted(even, key=lambda i: -best[i][0])[: len(patches) - left]
    total, weight = {j: patches[j] * sizes[j] for j in odd}, {j: sizes[j].clone() for j in odd}
    for i in joining:
        total[best[i][1]] = total[best[i][1]] + patches[i] * sizes[i]
        weight[best[i][1]] += sizes[i]
    alone = [i for i in sorted(even, key=lambda i: -best[i][0]) if i not in joining]
    means = [patches[i] for i in alone] + [total[j] / weight[j] for j in odd]
    return torch.stack(means), torch.stack([sizes[i] for i in alone] + [weight[j] for j in odd])


@pytest.mark.parametrize(("count", "left"), [(8, 4), (8, 6), (9, 5), (9, 8)])
def test_the_most_alike_pairs_become_their_weighted_mean(count: int, left: int) -> None:
    rng = torch.Generator().manual_seed(count + left)
    patches, keys = torch.randn(2, count, 5, generator=rng), torch.randn(2, count, 3, generator=rng)
    sizes = torch.randint(1, 4, (2, count, 1), generator=rng).float()
    merged, merged_sizes = merge(patches, sizes, keys, left)
    assert merged.shape == (2, left, 5)
    assert torch.equal(merged_sizes.sum(1), sizes.sum(1))
    for image in range(2):
        expected, weights = _merged_by_hand(patches[image], sizes[image], keys[image], left)
        assert torch.allclose(merged[image], expected, atol=1e-5)
        assert torch.equal(merged_sizes[image], weights)


def test_equal_patches_merge_without_a_trace(tower: VisionTower) -> None:
    """Patches that stand for two count twice, so that a tower of equal patches does not see that they are fewer."""
    flat = torch.full((1, 3, 48, 48), 0.3)
    tower.embeddings.position_embedding.weight.data[1:] = 0
    merged = MergedTower(tower, parse_steps("0.5@1,0.5@2"))
    assert torch.allclose(merged(flat), tower(flat), atol=1e-5)


def test_layers_behind_a_step_see_fewer_tokens_and_the_class_token_stays_first(mini: Backbone, pixels: Tensor) -> None:
    tower, seen = mini.vision_tower(), []
    assert isinstance(tower, VisionTower)
    for layer in tower.blocks:
        layer.layer_norm1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    MergedTower(tower, parse_steps("0.5@1,0.75@3"))(pixels)
    patches = (tower.shape.image_size // tower.shape.patch_size) ** 2
    halved = -(-patches // 2)
    assert seen == [1 + patches, 1 + halved, 1 + halved, 1 + PatchStep(0.75, 3).left(halved)]


def test_keeping_everything_is_the_tower_itself(mini: Backbone) -> None:
    ticket = draw_ticket(mini, TicketConfig.build({"distillation_steps": 0, "sparsity": 0.25}))
    assert with_patches(ticket, parse_steps("1@1,1.0@2")) is ticket


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5", "has '0.5'; write a fraction and a layer counted from 1, such as 0.5@4"),
        ("half@2", "has 'half@2'; write a fraction"),
        ("0.5@0", "has '0.5@0'; write a fraction"),
        ("0.3@2", "has '0.3@2'; patches are merged in pairs"),
        ("nan@2", "has 'nan@2'; patches are merged in pairs"),
        ("1.5@2", "give a fraction from 0.5 to 1"),
        ("0.5@3,0.5@2", "out of order or twice"),
        ("0.5@2,0.9@2", "out of order or twice"),
    ],
)
def test_another_notation_is_refused_with_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        BundleOptions.build({"keep_patches": text})
    assert said in str(error.value)


def test_a_layer_that_is_not_there_is_refused_before_an_image_is_read(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 4 layers in its image tower, and patches are to be merged in layer 9"):
        export_bundle(run, tmp_path / "b", BundleOptions.build({"keep_patches": "0.5@2,0.5@9"}))
    assert not (tmp_path / "b").exists()


def test_a_bundle_of_fewer_patches_fewer_channels_and_int8_says_so(run: Path, key: Path, tmp_path: Path) -> None:
    """All three levers at once; forced, since nothing was distilled and int8 depends on the processor."""
    settings = {"sparsity": 0.25, "distillation_steps": 0, "quantize": "int8", "keep_patches": "0.75@1,1@2,0.5@3"}
    options = BundleOptions.build({**settings, "site": "1", "key": key, "most_images": 32, "force": True})
    written = export_bundle(run, tmp_path / "b", options)
    record = written.manifest.ticket
    assert (record.keep_patches, record.heads, record.spec["sparsity"]) == ("0.75@1,0.5@3", [3] * 4, 0.25)
    assert written.manifest.parity.top1_agreement > 80
    assert open_bundle(tmp_path / "b").manifest.content["ticket"]["keep_patches"] == "0.75@1,0.5@3"


def test_the_onnx_model_takes_batches_and_computes_what_torch_does(mini: Backbone, pixels: Tensor) -> None:
    tower = mini.vision_tower()
    assert isinstance(tower, VisionTower)
    merged = MergedTower(tower, parse_steps("0.6@2")).eval()
    model = export_onnx(merged, (48, 48), {})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (embeddings,) = session.run(None, {"pixels": pixels.numpy()})
    assert np.allclose(embeddings, merged(pixels).detach().numpy(), atol=1e-4)
    assert {entry.domain for entry in model.opset_import if entry.domain} == set()
