"""Images to train small tickets on, runs on disk without a federation, and one bundle that many tests open."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fedgraft.methods.adapter import Vocabulary
from fedgraft.backbones import Backbone
from fedgraft.runs.personal_state import PersonalState
from fedgraft.config.run_config import RunConfig
from fedgraft.runs.split_file import DealtData, write_dealt
from fedgraft.data.examples import content_key
from fedgraft.data.protocols.protocol import deal
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.export import ExportOptions, export
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.tickets.draw import TicketConfig, draw_ticket
from fedgraft.edge_export.tickets.image_pool import ImagePool, ServerImages
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.methods import load_method
from fedgraft.runs.run_directory import Checkpoint, RunDirectory

MakeRun = Callable[..., Path]
Traced = Callable[[str], tuple[Ticket, onnx.ModelProto]]
PAGE = shutil.which("npm") is not None or bool(os.environ.get("CI"))
"""Whether the page's runtime can be fetched; in CI it must be."""
ROUND = 3


@pytest.fixture(scope="session")
def pool(random_clip: Backbone) -> ImagePool:
    """24 images of noise with three class names."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 48, 48, 3)).astype(np.uint8)
    images = ServerImages(
        "noise",
        np.stack([content_key(image.tobytes()) for image in pixels]),
        lambda position: Image.fromarray(pixels[position]),
        ("circle", "square", "star"),
        ("a photo of a {}.",),
    )
    return ImagePool(random_clip, images)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, mini: Backbone) -> MakeRun:
    """Writes what a run of a few rounds leaves: a configuration, a deal, a checkpoint, and each site's own state."""

    def make(method: str = "fedpgp", **settings: object) -> Path:
        loaded = load_method(method)
        options = {"ctx_init": "the digit"} if "ctx_init" in loaded.options.model_fields else {}
        config = RunConfig.build({"method": method, "sites": 3, "method_options": options, **settings})
        run = tmp_path_factory.mktemp("runs") / method
        directory = RunDirectory(run)
        directory.create(config)
        examples = open_source(config.data, config.seed)
        data = DealtData(deal(examples, config), examples.keys)
        write_dealt(run, data)
        vocabulary = Vocabulary(mini, data.deal.class_names, data.deal.templates)
        parsed = loaded.parse_options(config.method_options)
        for fold in range(len(data.deal.folds)):
            for site in range(config.sites):
                adapter = loaded.adapter(vocabulary, parsed, torch.Generator().manual_seed(site))
                if personal := adapter.personal():
                    folder = run / "sites" / f"{fold:03d}" / f"{site:06d}"
                    PersonalState(folder, {"method": method, "fingerprint": mini.fingerprint}).save(ROUND, personal)
            arrays = {name: value.numpy().copy() for name, value in adapter.server_state().items()}
            directory.save_checkpoint(Checkpoint(fold, ROUND, arrays, []), mini.fingerprint)
        return run

    return make


@pytest.fixture(scope="session")
def run(make_run: MakeRun) -> Path:
    """A run of FedPGP with three sites."""
    return make_run()


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' signing key is."""
    return tmp_path_factory.mktemp("keys") / "signing.key"


@pytest.fixture(scope="session")
def exported(run: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 bundle of site 1, with its page; tests read it and change copies only."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export(run, out, ExportOptions(site="1", quantization="int8", key=key, most_images=96, web=PAGE))
    return out


@pytest.fixture(scope="session")
def traced(mini: Backbone) -> Traced:
    """A ticket of `mini` at half its weights, and its ONNX model, traced once; "dense" is the whole tower."""

    @cache
    def trace(pattern: str) -> tuple[Ticket, onnx.ModelProto]:
        ticket = dense_ticket(mini)
        if pattern != "dense":
            ticket = draw_ticket(mini, TicketConfig.build({"pattern": pattern, "distillation_steps": 0}))
        return ticket, export_onnx(ticket.vision, 48, {})

    return trace


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported`, that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
