"""The table of published backbones: its configurations are the published ones, and the page shows what they give."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.backbone_table import BEGIN, PAGE, Row, rows, tables
from benchmarks.published_backbones import published
from fedgraft.backbones.checkpoints.clip_names import clip_config
from fedgraft.backbones.checkpoints.dual_names import MODEL_TYPE
from fedgraft.backbones.family import model_type
from fedgraft.config.registry import BACKBONES

ROOT = Path(__file__).parents[3]
MILLIONS = {
    "ViT-B-32": (87.85, 63.43), "ViT-B-16": (86.19, 63.43), "ViT-L-14": (303.97, 123.65),
    "ViT-L-14-336": (304.29, 123.65), "ViT-H-14": (632.08, 354.03), "ViT-g-14": (1012.65, 354.03),
    "ViT-bigG-14": (1844.91, 694.66),
    "ViT-B-16-SigLIP": (92.88, 110.27), "ViT-B-16-SigLIP-256": (92.93, 110.27), "ViT-B-16-SigLIP-384": (93.18, 110.27),
    "ViT-B-16-SigLIP-512": (93.52, 110.27), "ViT-B-16-SigLIP-i18n-256": (92.93, 277.7),
    "ViT-L-16-SigLIP-256": (315.96, 336.19), "ViT-L-16-SigLIP-384": (316.28, 336.19),
    "ViT-SO400M-14-SigLIP": (427.68, 449.68), "ViT-SO400M-14-SigLIP-384": (428.23, 449.73),
    "EVA02-B-16": (86.26, 63.43), "EVA02-L-14": (304.11, 123.65),
}  # fmt: skip
"""Millions of parameters, images and texts, as OpenCLIP's authors list them (docs/model_profile.csv)."""
OTHER_SIZE = "ViT-SO400M-14-SigLIP2-384"
"""OpenCLIP has this one with 378 pixels, a multiple of its patches."""
CHINESE = {"B/16": (86, 102), "L/14": (304, 102), "H/14": (632, 326)}
"""The same of Chinese-CLIP, as its authors list them; they leave the projections out."""


@pytest.fixture(scope="module")
def found() -> list[Row]:
    """The rows of all families that are installed."""
    return rows()


@pytest.mark.slow
def test_every_model_of_an_installed_family_has_a_row(found: list[Row], tmp_path: Path) -> None:
    named = {row.published.hub for row in found}
    for entry in published():
        (tmp_path / "config.json").write_text(json.dumps(entry.config))
        assert model_type(tmp_path) == entry.config["model_type"]
        opened = any(family.recognizes(tmp_path) for family in BACKBONES)
        assert (entry.hub in named) == opened, entry.hub
    assert {"openai/clip-vit-base-patch16", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"} <= named


def test_ids_are_named_once() -> None:
    hubs = [entry.hub for entry in published()]
    assert len(hubs) == len(set(hubs))


@pytest.mark.slow
def test_parameters_are_the_published_numbers(found: list[Row]) -> None:
    compared = 0
    for row in found:
        image, text = row.parameters["image"] / 1e6, row.parameters["text"] / 1e6
        if expected := MILLIONS.get((row.published.openclip or "").removesuffix("-quickgelu")):
            assert (image, text) == pytest.approx(expected, abs=0.011), row.published.name
            compared += 1
        if row.family == "chinese-clip":
            size = row.published.name.split("ViT-")[1].split(",")[0]
            assert (image, text) == pytest.approx(CHINESE[size], abs=1.5), row.published.name
            compared += 1
    assert compared >= 15


def test_configurations_are_those_that_openclip_ships(open_clip: Any) -> None:
    """The same facts, written down by others."""
    compared = 0
    for entry in published():
        if entry.openclip is None:
            continue
        file = importlib.resources.files(open_clip) / "model_configs" / f"{entry.openclip}.json"
        if not file.is_file():
            assert entry.openclip == OTHER_SIZE, entry.openclip
            continue
        theirs, ours = json.loads(file.read_text()), entry.config
        vision, text = theirs["vision_cfg"], theirs["text_cfg"]
        compared += 1
        if ours["model_type"] == "clip":
            assert ours == clip_config(theirs), entry.name
            continue
        assert ours["vision_config"]["image_size"] == vision["image_size"], entry.name
        width = "hidden_size"
        mine = ours["text_config"]
        assert (mine[width], mine["num_attention_heads"], mine["num_hidden_layers"], mine["vocab_size"]) == (
            text["width"], text["heads"], text["layers"], text["vocab_size"]
        ), entry.name  # fmt: skip
        assert mine["max_position_embeddings"] == text["context_length"], entry.name
        if ours["model_type"] == MODEL_TYPE:
            assert ours["projection_dim"] == theirs["embed_dim"], entry.name
            for key in ("timm_model_name", "timm_pool", "timm_proj"):
                assert ours["vision_config"][key] == vision[key], entry.name
            assert mine["causal"] != text.get("no_causal_mask", False), entry.name
        elif ours["model_type"] == "metaclip_2":
            expected = clip_config(theirs)
            assert ours["vision_config"] == {**expected["vision_config"], "model_type": "metaclip_2_vision_model"}
            assert (ours["projection_dim"], mine["eos_token_id"]) == (theirs["embed_dim"], text["eos_id"])
        else:
            assert ours["vision_config"][width] == mine["projection_size"] == theirs["embed_dim"], entry.name
    assert compared >= 30


@pytest.mark.slow
def test_the_page_shows_what_the_configurations_give(found: list[Row]) -> None:
    """`python -m benchmarks.backbone_table --write` after a change."""
    written = tables(found)
    _, _, page = (ROOT / PAGE).read_text().partition(BEGIN)
    shown = set(page.splitlines())
    for line in written.splitlines():
        assert line in shown
