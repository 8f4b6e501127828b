"""A bundle cut to dimensions and layers: smaller, exact, measured at every cut, and with later class banks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor

from fedgraft.backbones.loading import KnownFolder, located
from fedgraft.cli.printing import print_export
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples
from fedgraft.device import Predictor
from fedgraft.device.bundle import open_bundle
from fedgraft.device.commands import verify
from fedgraft.edge_export.bundle_manifest import BundleManifest
from fedgraft.edge_export.cutting import PROJECTION, Cut, Cutting
from fedgraft.edge_export.export import Exported, export_bundle, export_class_bank
from fedgraft.edge_export.measurement_images import run_images
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions
from fedgraft.edge_export.parity import onnx_embeddings
from fedgraft.edge_export.towers import chosen_tower
from fedgraft.edge_export.trained_run import TrainedRun, class_features
from fedgraft.methods.nesting import prefix
from fedgraft.runs.run_directory import RunDirectory
from tests.edge_export.conftest import MakeRun

IMAGES = 32


class _Notices(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_notice(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture(scope="module")
def nested_run(make_run: MakeRun) -> Path:
    """A run of matryoshka on a backbone of 128 dimensions and four layers."""
    return make_run("matryoshka", method_options={"dims": "16,32", "depths": "2,3"})


@pytest.fixture(scope="module")
def shallow(nested_run: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its bundle of 32 dimensions and three layers."""
    options = BundleOptions(dim=32, depth=3, key=key, most_images=IMAGES, force=True)
    return export_bundle(nested_run, tmp_path_factory.mktemp("cut") / "shallow", options)


@pytest.fixture(scope="module")
def notices() -> _Notices:
    return _Notices()


@pytest.fixture(scope="module")
def narrow(run: Path, key: Path, notices: _Notices, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of 16 dimensions of a run that was not trained for it and has ten classes."""
    options = BundleOptions(site="1", dim=16, key=key, most_images=IMAGES)
    return export_bundle(run, tmp_path_factory.mktemp("cut") / "narrow", options, notices)


def _pixels(exported: Exported, digits: Examples) -> Any:
    return Predictor(exported.out).preprocessing.batch([digits.load(index) for index in range(0, 320, 10)])


def _bank(path: Path) -> Tensor:
    return torch.from_numpy(load(open_bundle(path).read("classes.safetensors"))["class_features"].copy())


def test_the_encoder_has_the_layers_and_dimensions_that_are_left(
    shallow: Exported, nested_run: Path, digits: Examples
) -> None:
    adapter = TrainedRun.open(nested_run, "global").adapter()
    content, pixels = open_bundle(shallow.out).read("model.onnx"), _pixels(shallow, digits)
    expected = prefix(adapter.shallow_encoder(3)(torch.from_numpy(pixels)), 32).numpy()
    found = onnx_embeddings(content, pixels)
    assert np.abs(found - expected).max() < 1e-5
    manifest = shallow.manifest
    assert (manifest.dim, manifest.model.output.shape, manifest.ticket.heads) == (32, ["batch", 32], [4, 4, 4])
    weights = sum(int(np.prod(each.dims)) for each in onnx.load_from_string(content).graph.initializer)
    whole = sum(own.numel() for own in adapter.image_encoder().parameters())
    layer = sum(own.numel() for own in adapter.image_encoder().layers[3].parameters())
    assert weights < whole - layer - (128 - 32) * 144 + 1000
    assert torch.allclose(_bank(shallow.out), prefix(class_features(adapter), 32), atol=1e-6)
    assert PROJECTION not in manifest.files
    later = Cut.of_bundle(open_bundle(shallow.out), 128).projection
    assert later is not None
    assert torch.equal(later, torch.eye(128)[:32])


def test_a_device_verifies_and_predicts_with_a_cut_bundle(
    shallow: Exported, digits: Examples, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(shallow.out, None, False)
    assert "cosine 1.0000" in capsys.readouterr().out
    answer = Predictor(shallow.out).predict(digits.load(0))
    embedding = onnx_embeddings(open_bundle(shallow.out).read("model.onnx"), _pixels(shallow, digits)[:1])
    best = int((torch.from_numpy(embedding) @ _bank(shallow.out).T).argmax())
    assert answer.label == digits.class_names[best]


def test_the_manifest_has_the_accuracy_of_every_cut(shallow: Exported, nested_run: Path) -> None:
    trained = TrainedRun.open(nested_run, "global")
    adapter, images = trained.adapter(), run_images(trained, IMAGES)
    gate, record = images.gate, shallow.manifest.cuts
    assert gate is not None
    assert record is not None
    assert (record.dim, record.depth, record.whole_dim, record.trained) == (32, 3, 128, True)
    assert (record.scope, record.images) == (gate.scope, len(gate.positions))
    accuracies = {(cut.dim, cut.depth): cut.accuracy for cut in record.cuts}
    assert list(accuracies) == [(dim, depth) for depth in (2, 3, None) for dim in (16, 32, 128)]
    pixels = torch.from_numpy(Predictor(shallow.out).preprocessing.batch(images.load(gate.positions)))
    truths = torch.from_numpy(images.examples.labels[gate.positions])
    for (dim, depth), accuracy in accuracies.items():
        tower = adapter.image_encoder() if depth is None else adapter.shallow_encoder(depth)
        with torch.no_grad():
            scores = prefix(tower(pixels), dim) @ prefix(adapter.class_features(gate.classes), dim).T
        predicted = torch.tensor(gate.classes)[scores.argmax(1)]
        assert accuracy == pytest.approx(100 * float((predicted == truths).float().mean()))
    assert shallow.manifest.generalization is not None
    assert shallow.manifest.generalization.bundle == accuracies[32, 3]
    assert shallow.manifest.generalization.dense == accuracies[128, None]


def test_a_run_that_was_not_trained_for_it_loses_no_prediction_at_a_dimension_for_each_class(
    narrow: Exported, run: Path, digits: Examples, notices: _Notices
) -> None:
    adapter, pixels = TrainedRun.open(run, "1").adapter(), _pixels(narrow, digits)
    with torch.no_grad():
        whole = adapter.image_encoder()(torch.from_numpy(pixels)) @ class_features(adapter).T
    embeddings = torch.from_numpy(onnx_embeddings(open_bundle(narrow.out).read("model.onnx"), pixels))
    assert embeddings.shape[1] == 16
    assert torch.equal((embeddings @ _bank(narrow.out).T).argmax(1), whole.argmax(1))
    record = narrow.manifest.cuts
    assert record is not None
    assert not record.trained
    assert [cut.dim for cut in record.cuts] == [16, 32, 64, 128]
    assert len({cut.accuracy for cut in record.cuts}) == 1
    assert any("not trained to be cut to 16 dimensions" in notice for notice in notices.said)


def test_a_later_class_bank_of_other_labels_fits_a_cut_encoder(
    narrow: Exported, run: Path, key: Path, digits: Examples, tmp_path: Path
) -> None:
    labels = ("seven", "three", "a cat")
    options = ClassBankOptions(site="2", labels=labels, key=key, most_images=IMAGES, force=True)
    update = export_class_bank(run, narrow.out, tmp_path / "update", options)
    assert update.manifest.dim == 16
    projection = torch.from_numpy(load(open_bundle(narrow.out).read(PROJECTION))["projection"].copy())
    features = class_features(TrainedRun.open(run, "2").adapter(labels))
    expected = torch.nn.functional.normalize(features @ projection.T, dim=-1)
    assert torch.allclose(_bank(update.out), expected, atol=1e-6)
    predictor = Predictor(narrow.out)
    predictor.swap_classes(update.out)
    assert set(predictor.predict(digits.load(0)).probabilities) == set(labels)


def test_nothing_changes_at_the_whole_size(run: Path) -> None:
    trained = TrainedRun.open(run, "1")
    adapter = trained.adapter()
    for options in (BundleOptions(), BundleOptions(dim=128), BundleOptions(depth=4), BundleOptions(dim=128, depth=4)):
        cutting = Cutting(trained.plan, adapter, adapter, options)
        assert cutting.cut == Cut()
        assert cutting.shallow_encoder() is None
        assert cutting.files() == {}
        assert cutting.cut.adapter(adapter) is adapter
    tower = chosen_tower(trained, adapter, BundleOptions(), Observer())
    assert Cut().tower(tower) is tower


def test_the_command_prints_every_cut(shallow: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    print_export(shallow)
    printed = capsys.readouterr().out
    assert "cut to 32 of 128 dimensions and 3 layers" in printed
    assert "2 layers: " in printed
    assert "all layers: " in printed


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load a backbone or to read an image fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(TrainedRun, "open", fail)


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("promptfl", {"dim": 129}, "has features of 128 dimensions, which cannot be cut to 129"),
        ("promptfl", {"depth": 5}, "has 4 layers in its image tower, which cannot end early after 5"),
        ("promptfl", {"depth": 3}, "has no classifier behind layer 3 .*none behind an early layer.*depths=3"),
        ("matryoshka", {"depth": 1}, "has no classifier behind layer 1 .*only behind 2 and 3"),
        ("matryoshka", {"dim": 32, "retune": 2}, "--retune trains the prompt at the whole size"),
        ("matryoshka", {"depth": 3, "sparsity": 0.5}, "--depth cuts the dense image tower; leave out --sparsity"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_before_anything_is_loaded(
    method: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    nested = {"method_options": {"depths": "2,3"}} if method == "matryoshka" else {}
    directory.create(RunConfig.build({"method": method, "sites": 2, **nested}))
    with pytest.raises(UserError, match=said) as error:
        export_bundle(directory.path, tmp_path / "out", BundleOptions.build(options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_read")
def test_a_family_whose_tower_cannot_end_early_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abilities = located("mini").abilities()
    poor = replace(abilities, image=replace(abilities.image, exits=False))
    monkeypatch.setattr(KnownFolder, "abilities", lambda self: poor)
    directory = RunDirectory(tmp_path / "run")
    directory.create(RunConfig(method="promptfl", sites=2))
    with pytest.raises(UserError, match="The backbone 'mini' has an image tower that cannot end behind an early layer"):
        export_bundle(directory.path, tmp_path / "out", BundleOptions(depth=3))


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"depth": -1}, {"dim": "half"}])
def test_a_size_that_is_no_size_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"The option '{next(iter(wrong))}'"):
        BundleOptions.build(wrong)


def test_a_manifest_without_cuts_is_still_valid(narrow: Exported) -> None:
    old = narrow.manifest.model_dump(mode="json")
    del old["cuts"]
    assert BundleManifest.model_validate(old).cuts is None
