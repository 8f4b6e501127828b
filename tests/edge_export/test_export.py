"""From a run to a bundle: the right prompt, the right figures, and a refusal where too much is lost."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.ticket_backbone import TicketFile
from fedgraft.cli.main import main
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples, content_key
from fedgraft.device import Predictor
from fedgraft.device.bundle import open_bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.commands import verify
from fedgraft.device.kernels import integer_kernels
from fedgraft.edge_export.calibration import best_temperature, calibration_error, fit
from fedgraft.edge_export.export import export_bundle, export_class_bank
from fedgraft.edge_export.measure import EmbeddedImages, device_preprocessing, generalization
from fedgraft.edge_export.measurement_images import Gate, MeasurementImages, run_images, site_images
from fedgraft.edge_export.options import BundleOptions, ClassBankOptions
from fedgraft.edge_export.parity import accuracy, torch_embeddings
from fedgraft.edge_export.retune import retune
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.tickets.ticket_config import TicketConfig
from fedgraft.edge_export.towers import chosen_tower
from fedgraft.edge_export.trained_run import TrainedRun, class_features, features_of
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from tests.edge_export.conftest import ROUND, MakeRun, Traced

UseTraced = Callable[[str], None]


# --- images that probabilities are fitted on ------------------------------------------------------


@pytest.mark.parametrize("site", ["0", "2", "global"])
def test_no_test_image_and_no_copy_of_one_is_fitted_on(site: str, run: Path) -> None:
    trained = TrainedRun.open(run, site)
    images = run_images(trained, 10_000)
    assert images.held_out
    seen = {key.tobytes() for key in trained.split.keys[trained.split.used]}
    assert not any(trained.split.keys[position].tobytes() in seen for position in images.calibration)


def test_training_images_are_fitted_on_where_nothing_else_is_left(make_run: MakeRun) -> None:
    run = make_run("promptfl", shots=0, protocol="dirichlet", protocol_options={"alpha": 100.0})
    trained = TrainedRun.open(run, "1")
    images = run_images(trained, 100)
    share = trained.split.folds[0].sites[1]
    assert not images.held_out
    assert set(images.calibration) <= set(share.train)
    assert not set(images.calibration) & set(share.tests["personal"])


def test_a_deployed_site_is_exported_from_its_own_folder(
    make_run: MakeRun, images: Path, mini: Backbone, tmp_path: Path
) -> None:
    """Its images and its personal state never reach the run directory."""
    simulated = TrainedRun.open(make_run(), "1")
    names = sorted(folder.name.replace("_", " ") for folder in images.iterdir())
    settings = {"protocol": "own-data", "data": "folder:own", "protocol_options": {"class_names": names}}
    directory = RunDirectory(tmp_path / "run")
    directory.create(simulated.plan.config.model_copy(update=settings))
    assert simulated.checkpoint is not None
    directory.checkpoints.save(simulated.checkpoint, mini.fingerprint)
    site = SiteFolder.create(tmp_path / "site", "clinic", images)
    with pytest.raises(UserError, match="keeps the state of 0 runs"):
        TrainedRun.open(directory.path, "1", site_folder=site.path)
    assert simulated.state is not None
    shutil.copytree(simulated.state, site.state / "run-1234" / "000")
    trained = TrainedRun.open(directory.path, "1", site_folder=site.path)
    assert trained.adapter().vocabulary.class_names == tuple(names)
    chosen = site_images(trained, site, 100)
    assert chosen.gate is not None
    assert chosen.gate.scope == "personal"
    assert set(chosen.label_names(chosen.training)) == set(names)
    assert not set(chosen.training) & set(chosen.gate.positions)
    with pytest.raises(UserError, match="are at its sites"):
        run_images(TrainedRun.open(directory.path, "global"), 100)


def test_a_site_folder_alone_means_that_site_and_not_the_global_prompt(
    make_run: MakeRun, images: Path, mini: Backbone, tmp_path: Path
) -> None:
    names = sorted(folder.name.replace("_", " ") for folder in images.iterdir())
    settings = {"protocol": "own-data", "data": "folder:own", "protocol_options": {"class_names": names}}
    site = SiteFolder.create(tmp_path / "site", "clinic", images)
    for method in ("fedpgp", "promptfl"):
        simulated = TrainedRun.open(make_run(method), "1")
        directory = RunDirectory(tmp_path / method)
        directory.create(simulated.plan.config.model_copy(update=settings))
        assert simulated.checkpoint is not None
        directory.checkpoints.save(simulated.checkpoint, mini.fingerprint)
        if method == "fedpgp":
            with pytest.raises(UserError, match="The site 'clinic' keeps no personal parameters"):
                TrainedRun.open(directory.path, None, site_folder=site.path).adapter()
            assert simulated.state is not None
            shutil.copytree(simulated.state, site.state / "run-1234" / "000")
        own = TrainedRun.open(directory.path, None, site_folder=site.path)
        assert own.site_name == "clinic"
        numbered = "1" if method == "fedpgp" else "global"
        expected = TrainedRun.open(directory.path, numbered, site_folder=site.path).adapter()
        assert torch.equal(class_features(own.adapter()), class_features(expected))
    assert TrainedRun.open(make_run(), None).site_name == "global"
    shared = TrainedRun.open(tmp_path / "fedpgp", "global", site_folder=site.path)
    own = TrainedRun.open(tmp_path / "fedpgp", None, site_folder=site.path)
    assert not torch.equal(class_features(shared.adapter()), class_features(own.adapter()))


def test_images_of_two_classes_of_one_name_are_judged_by_their_own(mini: Backbone) -> None:
    """Two classes of ImageNet are called "missile"; by name, the images of the first counted as of the second."""
    names = ("missile", "red star", "missile")
    vocabulary = Vocabulary(mini, names, ("a photo of a {}.",))
    plan = Plan.of(RunConfig(method="promptfl", method_options={"class_context": True}))
    adapter = plan.adapter(vocabulary, 0)
    labels = np.asarray([0, 1, 2, 2, 0, 1])
    examples = Examples(
        class_names=names,
        labels=labels,
        domain_names=("all",),
        domains=np.zeros(6, np.int64),
        keys=np.stack([content_key(bytes([number])) for number in range(6)]),
        load=lambda index: Image.new("RGB", (8, 8)),
        repeated_names=True,
    )
    positions, gate = np.arange(6), Gate("novel", np.arange(6), (0, 1, 2), names)
    images = MeasurementImages(examples, positions, True, gate, positions, positions, positions[:0])
    bank = features_of(adapter, (0, 1, 2)).numpy()
    pixels = mini.preprocess([Image.new("RGB", (8, 8))] * 6).numpy()
    embedded = EmbeddedImages(images, positions, pixels, bank[labels])
    assert generalization(embedded, gate, bank, adapter, 100).bundle == 100


def test_the_temperature_is_that_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 5))
    truths = np.asarray([rng.choice(5, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    assert best_temperature(logits, truths) == pytest.approx(1, abs=0.05)
    assert best_temperature(3 * logits, truths) == pytest.approx(3, abs=0.15)
    fitted = fit(3 * logits, truths, 0.1)
    assert fitted.ece is not None
    assert fitted.ece_before is not None
    assert fitted.ece < 5 < fitted.ece_before
    assert fitted.known_rejected == pytest.approx(10, abs=1)
    assert calibration_error(np.eye(5)[truths], truths) == 0


# --- bundles --------------------------------------------------------------------------------------


@pytest.fixture
def use_traced(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> UseTraced:
    """Whatever tower an export traces, it gets the model of this pattern."""

    def use(pattern: str) -> None:
        monkeypatch.setattr("fedgraft.edge_export.encoder.export_onnx", lambda *_: traced(pattern)[1])

    return use


@pytest.mark.slow
def test_the_same_export_has_the_same_bytes_and_no_path_of_this_machine(exported: Path, exported_again: Path) -> None:
    first, second = (json.loads((path / "manifest.json").read_text()) for path in (exported, exported_again))
    assert {**second, "files": {name: second["files"][name] for name in first["files"]}} == first
    for name in first["files"]:
        content = (exported / name).read_bytes()
        assert content == (exported_again / name).read_bytes(), name
        assert str(exported.parents[1]).encode() not in content, name
        assert b"site-packages" not in content, name


@pytest.mark.slow
def test_the_manifest_has_the_runs_own_figures(
    exported: Path, site_1: TrainedRun, mini: Backbone, digits: Examples
) -> None:
    """The dense accuracy is what the run's evaluation would have said of the site's novel test images."""
    manifest = json.loads((exported / "manifest.json").read_text())
    fold = site_1.split.folds[0]
    novel = next(scope for scope in fold.scopes if scope.name == "novel")
    kept = manifest["generalization"]
    positions = fold.sites[1].tests["novel"]
    positions = positions[np.linspace(0, len(positions) - 1, kept["images"]).round().astype(int)]
    features = mini.encode_images(mini.preprocess([digits.load(int(p)) for p in positions])).numpy()
    bank = class_features(site_1.adapter()).numpy()[list(novel.classes)]
    right = np.asarray(novel.classes)[(features @ bank.T).argmax(1)] == site_1.split.labels[positions]
    assert kept["dense"] == pytest.approx(100 * right.mean(), abs=1e-9)
    assert manifest["parity"]["images"] == 96
    assert manifest["parity"]["required_agreement"] == 97
    assert manifest["parity"]["held_out"]
    assert manifest["parity"]["saturation"]["pairs"] == 0
    assert manifest["parity"]["kernels"] == integer_kernels()
    golden = {"min_cosine": 0.97, "images": 16, "min_centred_cosine": 0.95, "min_agreement": 75.0}
    assert manifest["golden"] == golden
    assert manifest["run"]["site"] == "1"
    assert manifest["run"]["round"] == ROUND
    assert manifest["backbone"]["fingerprint"] == mini.fingerprint
    assert manifest["files"].keys() >= {"model.onnx", "classes.safetensors", "labels.json"}


@pytest.mark.slow
def test_a_bundle_that_loses_its_generalization_is_refused_with_the_figures(
    run: Path, key: Path, tmp_path: Path, use_traced: UseTraced
) -> None:
    use_traced("structured")
    options = BundleOptions(site="1", key=key, most_images=64, sparsity=0.5, distillation_steps=0)
    with pytest.raises(UserError, match=r"accuracy falls from .* % \(dense\) to .* --force") as refused:
        export_bundle(run, tmp_path / "b", options)
    assert not (tmp_path / "b").exists()
    written = export_bundle(run, tmp_path / "b", options.model_copy(update={"force": True}))
    assert written.manifest.forced
    assert written.manifest.forced[0] in str(refused.value)
    verify(tmp_path / "b")


@pytest.mark.slow
def test_a_model_that_is_not_its_torch_ticket_is_refused(
    run: Path, key: Path, tmp_path: Path, use_traced: UseTraced
) -> None:
    use_traced("structured")
    with pytest.raises(UserError, match=r"agrees with its torch tower on .* images; 99 % are required"):
        export_bundle(run, tmp_path / "b", BundleOptions(site="1", key=key, most_images=32, max_novel_drop=100))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_prompt_that_is_tuned_again_on_the_ticket_fits_it_better(
    run: Path, site_1: TrainedRun, key: Path, traced: Traced, use_traced: UseTraced, tmp_path: Path
) -> None:
    use_traced("structured")
    ticket = traced("structured")[0]
    images = run_images(site_1, 200)
    adapter = site_1.adapter()
    classes = list(site_1.split.folds[0].train_classes)
    pixels = device_preprocessing(site_1.backbone).batch(images.load(images.training))
    features = torch_embeddings(ticket.vision, pixels)
    truths = np.searchsorted(classes, images.examples.labels[images.training])
    before = accuracy(features, class_features(adapter).numpy()[classes], truths)
    retune(site_1, adapter, ticket, images, 20)
    assert accuracy(features, class_features(adapter).numpy()[classes], truths) > before
    options = BundleOptions(site="1", key=key, most_images=32, force=True, sparsity=0.5, distillation_steps=0)
    plain = export_bundle(run, tmp_path / "plain", options).manifest
    retuned = options.model_copy(update={"retune": 1, "labels": ("one", "a cat")})
    tuned = export_bundle(run, tmp_path / "tuned", retuned).manifest
    assert (plain.run.retuned_epochs, tuned.run.retuned_epochs) == (0, 1)
    assert plain.generalization is not None
    assert tuned.generalization is not None
    assert plain.generalization.dense == tuned.generalization.dense
    with pytest.raises(UserError, match="--retune trains on a site's own images"):
        export_bundle(run, tmp_path / "global", options.model_copy(update={"site": "global", "retune": 1}))


@pytest.mark.slow
def test_a_ticket_from_disk_and_a_zip(
    run: Path, key: Path, traced: Traced, use_traced: UseTraced, tmp_path: Path
) -> None:
    use_traced("structured")
    ticket = traced("structured")[0]
    ticket.save(tmp_path / "ticket")
    options = BundleOptions(site="1", ticket=str(tmp_path / "ticket"), key=key, most_images=32, max_novel_drop=100)
    written = export_bundle(run, tmp_path / "b.zip", options)
    assert written.manifest.ticket.fingerprint == ticket.fingerprint
    assert written.manifest.ticket.heads == list(ticket.vision.shape.heads)
    assert Predictor(tmp_path / "b.zip").self_test() > 0.9999


@pytest.mark.parametrize(("name", "drawn"), [("natural", []), ("robust", [("robust", 0.0)])])
def test_a_robust_tower_is_made_so_even_where_nothing_is_removed(
    name: str, drawn: list[tuple[str, float]], site_1: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def draw(backbone: Backbone, config: TicketConfig, *_: object, **__: object) -> Ticket:
        asked.append((config.kind, config.sparsity))
        return dense_ticket(backbone)

    monkeypatch.setattr("fedgraft.edge_export.towers.draw_ticket", draw)
    chosen_tower(site_1, site_1.adapter(), BundleOptions(ticket=name), Observer())
    assert asked == drawn


# --- class banks ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_class_bank_of_any_method_opens_with_one_encoder(
    make_run: MakeRun, bundle: Path, key: Path, digits: Examples, tmp_path: Path
) -> None:
    """A class bank replaces another whatever method it comes from, as long as the encoder is the same."""
    predictor = Predictor(bundle, threads=1)
    options = ClassBankOptions(key=key, most_images=32, force=True)
    for number, method in enumerate(("zeroshot", "promptfl"), start=2):
        out = tmp_path / method
        export_class_bank(make_run(method), bundle, out, options.model_copy(update={"bundle_version": number}))
        predictor.swap_classes(out)
        bank = ClassBank.read(open_bundle(out))
        assert bank.version == number
        assert predictor.predict(digits.load(0)).label == "zero"


@pytest.mark.slow
def test_a_class_bank_needs_a_bundle_of_the_runs_backbone(run: Path, exported: Path, key: Path, tmp_path: Path) -> None:
    options = ClassBankOptions(key=key, most_images=32, force=True)
    written = export_class_bank(run, exported, tmp_path / "bank", options)
    assert (written.manifest.kind, written.manifest.version, written.manifest.golden) == ("classes", 2, None)
    with pytest.raises(UserError, match="has no encoder of the run's backbone"):
        export_class_bank(run, tmp_path / "bank", tmp_path / "other", options)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_of_a_context_for_each_class_only_trained_classes_are_kept_and_that_is_told(
    make_run: MakeRun, exported: Path, key: Path, tmp_path: Path
) -> None:
    """The context of a class that nobody trained on is noise, which a device would show as a class."""
    run = make_run("promptfl", method_options={"class_context": True})
    trained = TrainedRun.open(run, "global")
    names = [trained.split.class_names[label] for label in trained.split.folds[0].train_classes]
    said: list[str] = []
    observer = Observer()
    observer.on_notice = said.append  # type: ignore[method-assign]
    options = ClassBankOptions(key=key, most_images=32, force=True)
    export_class_bank(run, exported, tmp_path / "bank", options, observer)
    bank = ClassBank.read(open_bundle(tmp_path / "bank"))
    assert list(bank.labels) == names
    assert any("keeps the 5 classes that were trained on and leaves out 5" in sentence for sentence in said)
    np.testing.assert_allclose(bank.features, class_features(trained.adapter(), names).numpy(), atol=1e-6)
    novel = options.model_copy(update={"labels": (names[0], trained.split.class_names[-1])})
    with pytest.raises(UserError, match="learnt a context for each class, and none for"):
        export_class_bank(run, exported, tmp_path / "other", novel)


@pytest.mark.parametrize(("method", "options"), [("vpt", {}), ("clip-adapter", {}), ("fedit", {"tower": "image"})])
def test_a_run_that_changes_the_image_tower_takes_no_other_tower(
    method: str, options: dict[str, Any], make_run: MakeRun, exported: Path, key: Path, mini: Backbone, tmp_path: Path
) -> None:
    """A ticket from disk, or the encoder of another run's bundle, would leave out what was learnt of images."""
    run = make_run(method, method_options=options)
    bank = ClassBankOptions(key=key, most_images=32, force=True)
    with pytest.raises(UserError, match=r"changes the image tower, so its class bank .* does not fit the encoder"):
        export_class_bank(run, exported, tmp_path / "bank", bank)
    trained = TrainedRun.open(run, "global")
    TicketFile("mini", {"source_fingerprint": mini.fingerprint}, mini.vision_tower()).write(tmp_path / "ticket")
    with pytest.raises(UserError, match=r"changes the image tower, and the ticket .* export its own tower"):
        chosen_tower(trained, trained.adapter(), BundleOptions(ticket=str(tmp_path / "ticket")), Observer())
    assert not (tmp_path / "bank").exists()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--site", "3"], "no site '3'; its sites are 0 to 2"),
        (["--site", "-1"], "no site '-1'"),
        (["--site", "one"], "no site 'one'"),
        (["--sparsity", "1"], "at least 0 and less than 1"),
        (["--sparsity", "-0.1"], "at least 0 and less than 1"),
        (["--sparsity", "0.9"], "would remove all 4 heads"),
        (["--sparsity", "0.5", "--pattern", "structurd"], "Did you mean 'structured'?"),
        (["--quantize", "int4"], "Known: none, int8, int8-static, fp16"),
        (["--ticket", "/no/such/ticket"], "/no/such/ticket"),
        (["--labels", "a,a"], "'a' appears twice"),
        (["--labels", "a,,b"], "is not a label"),
        (["--labels", ""], "not a list of 2"),
        (["--labels", "one"], "not a list of 2"),
        (["--max-novel-drop", "-1"], "'max_novel_drop' of 'export' has the value -1"),
        (["--unknown-rate", "1"], "'unknown_rate' of 'export' has the value 1"),
        (["--retune", "-1"], "'retune' of 'export' has the value -1"),
        (["--fold", "x"], "no fold 'x'"),
        (["--images", "/no/such/images"], "/no/such/images"),
        (["--classes-for", "/no/such/bundle"], "/no/such/bundle"),
        (["--classes-for", "/no/such/bundle", "--quantize", "int8"], "leave out --quantize."),
        (["--site-folder", "/no/such/site", "--site", "1"], "/no/such/site"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    said: str,
    run: Path,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def trace(*_: object) -> None:
        raise AssertionError("the mistake was not found before the model was traced")

    monkeypatch.setattr("fedgraft.edge_export.encoder.export_onnx", trace)
    command = ["export", str(run), "--out", str(tmp_path / "b"), "--key", str(key), *arguments]
    monkeypatch.setattr(sys, "argv", ["fedgraft", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capfd.readouterr().err
    assert (stopped.value.code, printed.count("\n")) == (2, 1), printed
    assert said in printed
    assert not (tmp_path / "b").exists()


def test_a_folder_without_a_run_and_an_out_that_is_taken(run: Path, key: Path, tmp_path: Path) -> None:
    options = BundleOptions(key=key)
    with pytest.raises(UserError, match="There is no run"):
        export_bundle(tmp_path, tmp_path / "b", options)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not an empty directory"):
        export_bundle(run, tmp_path / "b", options)
    (tmp_path / "b.zip").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        export_bundle(run, tmp_path / "b.zip", options)


def test_a_ticket_of_another_backbone(run: Path, key: Path, random_clip: Backbone, tmp_path: Path) -> None:
    dense_ticket(random_clip).save(tmp_path / "ticket")
    with pytest.raises(UserError, match="was drawn from a backbone with the fingerprint"):
        export_bundle(run, tmp_path / "b", BundleOptions(ticket=str(tmp_path / "ticket"), key=key))


# --- towers that cannot be pruned -----------------------------------------------------------------


class _OnlyDense(nn.Module):
    """A tower that is no `VisionTower`, as those of most families."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.inner = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same embeddings."""
        out: torch.Tensor = self.inner(pixels)
        return out


def test_a_tower_that_cannot_be_pruned_is_exported_dense_and_runs_on_the_device(
    run: Path, key: Path, mini: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mini, "image_encoder", lambda weights=None, prompts=None: _OnlyDense(mini.vision_tower(weights))
    )
    exported = export_bundle(run, tmp_path / "bundle", BundleOptions.build({"site": "1", "key": key, "force": True}))
    record = exported.manifest.ticket
    assert (record.heads, record.units) == (None, None)
    assert record.parameters == sum(weight.numel() for weight in mini.vision_tower().parameters())
    assert record.spec["sparsity"] == 0.0
    predictor = Predictor(tmp_path / "bundle")
    assert predictor.self_test() > 0.999
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 48, 3), np.uint8))
    embedding = predictor.embed(predictor.preprocessing.pixels(image)[None])
    assert np.allclose(embedding, mini.encode_images(mini.preprocess([image])).numpy(), atol=1e-4)
    bank = export_class_bank(
        run, tmp_path / "bundle", tmp_path / "bank", ClassBankOptions.build({"site": "0", "key": key})
    )
    assert bank.manifest.ticket == record
