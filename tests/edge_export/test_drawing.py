"""Tickets are drawn, distilled, saved, resumed after a kill, and make a backbone of their own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.core.errors import UserError
from fedgraft.data.worlds import shapes
from fedgraft.edge_export.tickets import training
from fedgraft.edge_export.tickets.attack import Attack, Noise, Nothing, PixelRange
from fedgraft.edge_export.tickets.draw import disturbance_of, draw_ticket, make_robust
from fedgraft.edge_export.tickets.image_pool import ImagePool, open_images
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.tickets.ticket_folder import draw_into
from fedgraft.edge_export.tickets.training import StageStore

SMALL = {"images": 24, "induction_steps": 4, "scheme_steps": 4, "distillation_steps": 4}


def _config(**settings: Any) -> TicketConfig:
    return TicketConfig.build({**SMALL, **settings})


def test_the_dense_ticket_is_the_image_tower(mini: Backbone) -> None:
    pixels = torch.rand(5, 3, 48, 48) * 2 - 1
    assert (dense_ticket(mini).vision(pixels) - mini.encode_images(pixels)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["natural", "robust"])
@pytest.mark.parametrize("scheme", ["omp", "imp", "lmp"])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "rows", "structured"])
def test_every_scheme_draws_every_pattern(
    pattern: str, scheme: str, kind: str, random_clip: Backbone, pool: ImagePool
) -> None:
    ticket = draw_ticket(random_clip, _config(pattern=pattern, scheme=scheme, kind=kind), pool=pool)
    dense = dict(random_clip.vision_tower().matrices())
    kept = sum(int(matrix.count_nonzero()) for _, matrix in ticket.vision.matrices())
    assert kept / sum(matrix.numel() for matrix in dense.values()) == pytest.approx(0.5, abs=0.01)
    assert (ticket.spec.kind, ticket.spec.scheme, ticket.spec.pattern) == (kind, scheme, pattern)
    assert ticket.spec.induction_steps == (4 if kind == "robust" else 0)


@pytest.mark.parametrize("scheme", ["omp", "lmp"])
def test_distillation_and_learnt_masks_bring_a_ticket_nearer_to_the_backbone(
    scheme: str, random_clip: Backbone, pool: ImagePool
) -> None:
    matching = Matching(pool, Nothing(), batch_size=24)

    def distance(**settings: Any) -> float:
        ticket = draw_ticket(random_clip, _config(pattern="unstructured", **settings), pool=pool)
        return float(matching(ticket.vision, np.random.default_rng(0)))

    cut = distance(distillation_steps=0)
    tuned = {"distillation_steps": 40} if scheme == "omp" else {"scheme": scheme, "scheme_steps": 40}
    assert distance(**{"distillation_steps": 0, **tuned}) < 0.9 * cut


@pytest.mark.parametrize("induction", ["pgd", "smoothing"])
def test_induction_brings_disturbed_images_nearer(induction: str, random_clip: Backbone, pool: ImagePool) -> None:
    config = _config(kind="robust", induction=induction, induction_steps=60)
    plain = random_clip.vision_tower()
    robust = make_robust(plain, config, pool, StageStore())
    matching = Matching(pool, disturbance_of(config), batch_size=24)
    losses = [float(matching(tower, np.random.default_rng(0)).detach()) for tower in (robust, plain)]
    assert losses[0] < 0.9 * losses[1]


def test_an_attack_stays_in_its_ball_and_raises_the_loss(random_clip: Backbone, pool: ImagePool) -> None:
    rng = np.random.default_rng(0)
    pixels, targets = pool.batch(8, rng)
    tower = random_clip.vision_tower()

    def loss(images: torch.Tensor) -> torch.Tensor:
        return (1 - (tower(images) * targets).sum(-1)).mean()

    scale = PixelRange.of(random_clip)
    moved = Attack(8 / 255, 3)(pixels, loss, scale, rng)
    assert ((moved - pixels) * scale.std).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(moved, scale.clamp(moved))
    noise = pixels + (moved - pixels)[:, :, torch.randperm(48)]
    assert loss(moved) > loss(noise) > loss(pixels) - 1e-6
    assert float(((Noise(0.1)(pixels, loss, scale, rng) - pixels) * scale.std).std()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.slow
def test_a_killed_drawing_resumes_to_the_same_ticket(
    random_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_EVERY", 2)
    source, config = str(random_clip_folder), _config(kind="robust", scheme="imp", pattern="unstructured")
    straight = draw_into(tmp_path / "straight", source, config)
    out, seen = tmp_path / "killed", 0

    def kill(stage: str, done: int, total: int) -> None:
        nonlocal seen
        seen += stage != "images"
        if seen % 4 == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_into(out, source, config, progress=kill)
    with pytest.raises(UserError, match="resume with the same settings"):
        draw_into(out, source, _config(seed=1), resume=True)
    with pytest.raises(UserError, match="add --resume"):
        draw_into(out, source, config)
    kills = 0
    while True:
        try:
            resumed = draw_into(out, source, config, resume=True, progress=kill)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 1
    assert resumed.fingerprint == straight.fingerprint
    assert sorted(path.name for path in out.iterdir()) == ["draw.json", "ticket.json", "ticket.safetensors"]


def test_the_same_configuration_draws_the_same_ticket_and_another_seed_another(
    random_clip: Backbone, pool: ImagePool
) -> None:
    first, again, other = (draw_ticket(random_clip, _config(seed=seed), pool=pool) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.vision.digest() != other.vision.digest()


def test_a_saved_ticket_is_the_image_tower_of_a_backbone(mini: Backbone, tmp_path: Path) -> None:
    ticket = draw_ticket(mini, _config(distillation_steps=0))
    ticket.save(tmp_path)
    assert Ticket.load(tmp_path, mini).fingerprint == ticket.fingerprint
    small, pixels = load_backbone(str(tmp_path)), torch.rand(3, 3, 48, 48)
    assert torch.equal(small.encode_images(pixels), ticket.vision(pixels))
    assert torch.equal(small.text.encode_texts(["a red star"]), mini.text.encode_texts(["a red star"]))
    assert small.fingerprint == ticket.fingerprint != mini.fingerprint
    assert small.preprocessing == mini.preprocessing
    assert small.linear_maps("text").keys() == mini.linear_maps("text").keys()
    again = draw_ticket(small, _config(distillation_steps=0))  # half of two heads
    assert again.vision.shape.heads == (1,) * 4


def test_a_ticket_of_another_backbone_is_refused(mini: Backbone, random_clip: Backbone, tmp_path: Path) -> None:
    draw_ticket(mini, _config(distillation_steps=0)).save(tmp_path)
    with pytest.raises(UserError, match="give the backbone that it was drawn from"):
        Ticket.load(tmp_path, random_clip)
    description = json.loads((tmp_path / "ticket.json").read_text())
    ticket = Ticket.load(tmp_path, mini)
    spec = replace(ticket.spec, source_fingerprint=random_clip.fingerprint)
    replace(ticket, spec=spec).save(tmp_path)
    with pytest.raises(UserError, match=f"{description['source']!r} has"):
        load_backbone(str(tmp_path))


def test_a_ticket_of_the_first_format_which_names_no_family_is_read(mini: Backbone, tmp_path: Path) -> None:
    ticket = draw_ticket(mini, _config(distillation_steps=0))
    ticket.save(tmp_path)
    description = json.loads((tmp_path / "ticket.json").read_text())
    assert description.pop("family") == "clip"
    (tmp_path / "ticket.json").write_text(json.dumps({**description, "format": 1}))
    assert Ticket.load(tmp_path, mini).fingerprint == ticket.fingerprint


def test_a_changed_or_torn_ticket_is_refused(mini: Backbone, tmp_path: Path) -> None:
    draw_ticket(mini, _config(distillation_steps=0)).save(tmp_path)
    weights = load_file(tmp_path / "ticket.safetensors")
    weights["layers.0.mlp.fc1.bias"][0] += 1
    save_file(weights, tmp_path / "ticket.safetensors")
    with pytest.raises(UserError, match="was changed after it was written"):
        Ticket.load(tmp_path, mini)
    whole = (tmp_path / "ticket.safetensors").read_bytes()
    (tmp_path / "ticket.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        Ticket.load(tmp_path, mini)
    (tmp_path / "ticket.json").unlink()
    with pytest.raises(UserError, match=r"no ticket\.json"):
        Ticket.load(tmp_path, mini)


def test_procedural_images_name_no_held_out_combination_and_are_drawn_from_the_seed() -> None:
    images, again, other = (open_images("procedural", seed, 40) for seed in (0, 0, 1))
    assert not {combination.name for combination in shapes.HELD_OUT} & set(images.class_names)
    assert len(images.class_names) == 480 + 10
    assert np.array_equal(images.keys, again.keys)
    assert not np.array_equal(images.keys, other.keys)
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        open_images("digit", 0, 40)
