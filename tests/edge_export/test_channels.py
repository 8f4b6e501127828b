"""Tickets of a network of convolutions: hidden channels really leave, and nothing but them changes."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from PIL import Image
from torch import Tensor

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.photo.encoder import PhotoImageEncoder
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError
from fedgraft.data.examples import content_key
from fedgraft.edge_export.encoder import traced_encoder
from fedgraft.edge_export.number_formats import find_format
from fedgraft.edge_export.parity import onnx_embeddings
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.image_pool import ImagePool, ServerImages
from fedgraft.edge_export.tickets.patterns import PATTERNS, checked_pattern, masked
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig

SMALL = {"images": 12, "induction_steps": 2, "scheme_steps": 2, "distillation_steps": 2, "batch_size": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photo-sample")
    sample = BACKBONES.load("photo").sample
    assert sample is not None
    sample(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    """Random, with one block that does not expand and two that do, of 16 and 24 hidden channels."""
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def tower(backbone: Backbone) -> PhotoImageEncoder:
    tower = backbone.vision_tower()
    assert isinstance(tower, PhotoImageEncoder)
    return tower


@pytest.fixture(scope="module")
def pool(backbone: Backbone) -> ImagePool:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 40, 40, 3)).astype(np.uint8)
    keys = np.stack([content_key(image.tobytes()) for image in pixels])
    names, templates = ("cat", "dog", "owl"), ("a photo of a {}.",)
    return ImagePool(backbone, ServerImages("noise", keys, lambda row: Image.fromarray(pixels[row]), names, templates))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_tower_with_folded_batch_norms_is_the_backbone(
    backbone: Backbone, tower: PhotoImageEncoder, pixels: Tensor
) -> None:
    assert torch.allclose(tower(pixels), backbone.encode_images(pixels), atol=1e-5)


@pytest.mark.parametrize(("sparsity", "hidden"), [(0.25, (8, 12, 18)), (0.5, (8, 8, 12)), (0.75, (8, 4, 6))])
def test_channels_leave_and_what_is_left_computes_the_same(
    sparsity: float, hidden: tuple[int, ...], tower: PhotoImageEncoder, pixels: Tensor
) -> None:
    pattern = PATTERNS["structured"]
    kept = pattern.kept(pattern.magnitudes(tower), sparsity)
    small = pattern.cut(tower, kept)
    assert small.shape.hidden == hidden
    assert sum(weight.numel() for weight in small.parameters()) < sum(weight.numel() for weight in tower.parameters())
    assert (small(pixels) - masked(tower, pattern.masks(tower, kept))(pixels)).abs().max() < 1e-5
    assert (small(pixels) - tower(pixels)).abs().max() > 1e-3


def test_the_same_channels_removed_by_torch_pruning_compute_the_same(tower: PhotoImageEncoder, pixels: Tensor) -> None:
    """Its dependency graph finds the depthwise filters and the columns that belong to the rows of an expansion."""
    pattern = PATTERNS["structured"]
    kept = pattern.kept(pattern.magnitudes(tower), 0.5)
    oracle = masked(tower, {}).requires_grad_(True)
    assert isinstance(oracle, PhotoImageEncoder)
    graph: Any = torch_pruning.DependencyGraph().build_dependency(oracle, example_inputs=pixels)
    for part in tower.parts():
        lost = (kept[part.name] == 0).nonzero()[:, 0].tolist()
        expansion = oracle.tower.residuals[part.layer].expand_conv
        graph.get_pruning_group(expansion, torch_pruning.prune_conv_out_channels, idxs=lost).prune()
    small = pattern.cut(tower, kept)
    assert {n: p.shape for n, p in oracle.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    assert (small(pixels) - oracle(pixels)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("pattern", "kind", "scheme"),
    [
        ("structured", "robust", "omp"),
        ("structured", "natural", "imp"),
        ("structured", "robust", "lmp"),
        ("rows", "robust", "omp"),
        ("rows", "natural", "lmp"),
        ("n:m", "natural", "omp"),
        ("n:m", "robust", "imp"),
        ("unstructured", "natural", "omp"),
    ],
)
def test_patterns_kinds_and_schemes_draw_half_of_the_tower(
    pattern: str, kind: str, scheme: str, backbone: Backbone, tower: PhotoImageEncoder, pool: ImagePool
) -> None:
    settings = {**SMALL, "pattern": pattern, "kind": kind, "scheme": scheme}
    ticket = draw_ticket(backbone, TicketConfig.build(settings), pool=pool)
    whole = sum(matrix.numel() for _, matrix in tower.matrices())
    left = sum(int(matrix.count_nonzero()) for _, matrix in ticket.vision.matrices())
    untouched = 8 * 8 if pattern == "structured" else 0  # of the block that does not expand
    assert (left - untouched) / (whole - untouched) == pytest.approx(0.5, abs=0.02)


def test_a_ticket_is_a_backbone_of_its_own_and_comes_back_as_it_was_written(
    folder: Path, backbone: Backbone, tmp_path: Path, pixels: Tensor
) -> None:
    ticket = draw_ticket(backbone, TicketConfig.build({"distillation_steps": 0}))
    ticket.save(tmp_path)
    assert Ticket.load(tmp_path, backbone).fingerprint == ticket.fingerprint
    pruned = load_backbone(str(tmp_path))
    assert torch.allclose(pruned.encode_images(pixels), ticket.vision(pixels), atol=1e-5)
    assert torch.equal(pruned.text.encode_texts(["a cat"]), backbone.text.encode_texts(["a cat"]))


def test_the_pruned_tower_becomes_onnx_that_computes_the_same_and_counts_its_channels(
    backbone: Backbone, pixels: Tensor
) -> None:
    ticket = draw_ticket(backbone, TicketConfig.build({"distillation_steps": 0}))
    encoder = traced_encoder(ticket, (32, 32), find_format("none"))
    assert np.allclose(onnx_embeddings(encoder.content, pixels.numpy()), ticket.vision(pixels).numpy(), atol=1e-5)
    assert (encoder.ticket.heads, encoder.ticket.units) == (None, [8, 12])
    assert encoder.ticket.parameters == ticket.parameters


def test_a_sparsity_that_would_empty_a_block_is_refused(tower: PhotoImageEncoder) -> None:
    with pytest.raises(UserError, match=r"remove all 16 hidden channels of block 1; give at most 0\.937"):
        checked_pattern("structured", tower, 0.99)


def test_sizes_that_no_tower_has_are_refused(tower: PhotoImageEncoder) -> None:
    for hidden in ((8, 0, 24), (8, 16), (8, 17, 24)):
        with pytest.raises(ValueError, match="every block needs at least one hidden channel"):
            type(tower.shape).from_json(asdict(replace(tower.shape, hidden=hidden)))
