"""Images to train small tickets on, runs on disk without a federation, and one bundle that many tests open."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fedgraft.backbones import Backbone
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import Examples, content_key
from fedgraft.data.sources.source import open_source
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.tickets.draw import draw_ticket
from fedgraft.edge_export.tickets.image_pool import ImagePool, ServerImages
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.run_directory import RunDirectory

MakeRun = Callable[..., Path]
Traced = Callable[[str], tuple[Ticket, onnx.ModelProto]]
PAGE = shutil.which("npm") is not None or bool(os.environ.get("CI"))
"""Whether the page's runtime can be fetched; in CI it must be."""
ROUND = 3


@pytest.fixture(scope="session")
def digits() -> Examples:
    """The data of `run`."""
    return open_source("digits", 0)


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
    """Writes what a run of a few rounds leaves, once for the same settings; tests that change it set a seed."""

    made: dict[str, Path] = {}

    def make(method: str = "fedpgp", **settings: object) -> Path:
        config = RunConfig.build({"method": method, "sites": 3, **settings})
        if hasattr(Plan.of(config).options, "ctx_init"):
            config = config.model_copy(update={"method_options": {"ctx_init": "the digit", **config.method_options}})
        identity = config.model_dump_json()
        if identity not in made:
            made[identity] = tmp_path_factory.mktemp("runs") / method
            _write_run(made[identity], config, mini)
        return made[identity]

    return make


def _write_run(path: Path, config: RunConfig, backbone: Backbone) -> None:
    plan, directory = Plan.of(config), RunDirectory(path)
    directory.create(config)
    split = plan.split(plan.open_examples())
    directory.write_split(split)
    vocabulary = Vocabulary(backbone, split.class_names, split.templates)
    for fold in range(len(split.folds)):
        for site in range(config.sites):
            if personal := plan.adapter(vocabulary, site, fold, ROUND).personal():
                PersonalState(directory.personal_state(fold, site), plan.identity(backbone)).save(ROUND, personal)
        arrays = {name: value.numpy().copy() for name, value in plan.adapter(vocabulary).server_state().items()}
        directory.checkpoints.save(Checkpoint(fold, ROUND, arrays, []), backbone.fingerprint)


@pytest.fixture(scope="session")
def run(make_run: MakeRun) -> Path:
    """A run of FedPGP with three sites."""
    return make_run()


@pytest.fixture(scope="session")
def site_1(run: Path) -> TrainedRun:
    """Site 1 of `run`."""
    return TrainedRun.open(run, "1")


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tests' signing key."""
    return tmp_path_factory.mktemp("keys") / "signing.key"


@pytest.fixture(scope="session")
def traced(mini: Backbone) -> Traced:
    """A ticket of `mini` at half its weights and its ONNX model, traced once; "dense" is the whole tower."""

    @cache
    def trace(pattern: str) -> tuple[Ticket, onnx.ModelProto]:
        ticket = dense_ticket(mini)
        if pattern != "dense":
            ticket = draw_ticket(mini, TicketConfig.build({"pattern": pattern, "distillation_steps": 0}))
        return ticket, export_onnx(ticket.vision, (48, 48), {})

    return trace


@pytest.fixture(scope="session")
def exported(run: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 bundle of site 1; tests read it and change copies only."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(run, out, _int8(key, web=False))
    return out


@pytest.fixture(scope="session")
def exported_again(run: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle a second time, with its page where npm is there."""
    out = tmp_path_factory.mktemp("bundles-again") / "bundle"
    export_bundle(run, out, _int8(key, web=PAGE))
    return out


def _int8(key: Path, web: bool) -> BundleOptions:
    return BundleOptions(site="1", quantize="int8", key=key, most_images=96, max_novel_drop=100, web=web)


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported`, that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
