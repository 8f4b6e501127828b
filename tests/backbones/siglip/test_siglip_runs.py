"""A SigLIP folder from a run to a device."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft import RunConfig
from fedgraft.backbones import load_backbone
from fedgraft.core.observer import Observer
from fedgraft.device.commands import verify
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.number_formats import NUMBER_FORMATS
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.parity import onnx_embeddings
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

BOTH_TOWERS = {"tower": "both", "targets": "all-linear"}


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "loss", "options"),
    [("promptfl", "softmax", {}), ("promptfl", "sigmoid", {"placement": "behind"}), ("fedit", "softmax", BOTH_TOWERS)],
)
def test_a_federation_learns_on_it(
    method: str, loss: str, options: dict[str, object], folder: Path, engine: Engine, tmp_path: Path
) -> None:
    config = RunConfig(
        method=method,
        method_options=options,
        loss=loss,
        data="digits",
        backbone=str(folder),
        sites=2,
        rounds=3,
        shots=2,
    )
    summary = simulate_on(engine, config, tmp_path / "run", False, Observer())
    assert summary["fingerprint"] == load_backbone(str(folder)).fingerprint
    losses = _losses(tmp_path / "run")
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_adapters_of_both_towers_arrive_on_a_device(siglip2_folder: Path, engine: Engine, tmp_path: Path) -> None:
    """The bundle has the changed image tower, dense, and a device reproduces what was measured."""
    config = RunConfig(
        method="fedit",
        method_options=BOTH_TOWERS,
        data="digits",
        backbone=str(siglip2_folder),
        sites=2,
        rounds=1,
        shots=2,
    )
    simulate_on(engine, config, tmp_path / "run", False, Observer())
    export_bundle(tmp_path / "run", tmp_path / "bundle", BundleOptions(site="global"), Observer())
    verify(tmp_path / "bundle")
    assert not json.loads((tmp_path / "bundle" / "preprocessor_config.json").read_text())["do_center_crop"]


@pytest.mark.slow
@pytest.mark.parametrize("number_format", NUMBER_FORMATS)
def test_the_image_tower_is_exported_in_every_number_format(number_format: str, siglip2_folder: Path) -> None:
    """The pooling too, whose query and values are constants."""
    backbone = load_backbone(str(siglip2_folder))
    pixels = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    model = export_onnx(backbone.image_encoder(), (48, 48), {})
    found = onnx_embeddings(NUMBER_FORMATS[number_format].reduce(model, pixels.numpy()), pixels.numpy())
    expected = backbone.encode_images(pixels).numpy()
    centred = [rows - rows.mean(0) for rows in (found, expected)]
    assert np.sum(centred[0] * centred[1]) > 0.98 * np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
