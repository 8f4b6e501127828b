"""From a run to a bundle: the right prompt, the right figures, and a refusal where too much is lost."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedgraft.backbones import Backbone
from fedgraft.cli.main import main
from fedgraft.runs.split_file import read_dealt
from fedgraft.data.sources.source import open_source
from fedgraft.device import Predictor
from fedgraft.device.bundle import open_bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.commands import verify
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.calibration import best_temperature, calibration_error, fit
from fedgraft.edge_export.export import ExportOptions, export
from fedgraft.edge_export.trained_run import adapter_of, class_features, open_run
from fedgraft.edge_export.measurement_images import run_images
from fedgraft.edge_export.onnx_model import reduced
from fedgraft.edge_export.parity import accuracy, compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.retune import retune
from fedgraft.edge_export.tickets.draw import TicketConfig
from fedgraft.edge_export.tickets.ticket import Ticket, dense_ticket
from fedgraft.edge_export.towers import TicketChoice, chosen_ticket
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from tests.edge_export.conftest import PAGE, ROUND, MakeRun, Traced

PATTERNS = ("structured", "rows", "n:m", "unstructured")


# --- images that probabilities are fitted on ------------------------------------------------------


def test_no_test_image_and_no_copy_of_one_is_fitted_on(run: Path) -> None:
    data = read_dealt(run)
    for site in ("0", "2", "global"):
        images = run_images(open_run(run, site), 10_000)
        assert images.held_out
        fold = data.deal.folds[0]
        used = np.concatenate([share.train for share in fold.sites] + [p for s in fold.sites for p in s.tests.values()])
        seen = {key.tobytes() for key in data.keys[used]}
        assert not any(data.keys[position].tobytes() in seen for position in images.calibration)


def test_training_images_are_fitted_on_where_nothing_else_is_left_and_the_manifest_says_so(
    make_run: MakeRun, key: Path, tmp_path: Path
) -> None:
    run = make_run("promptfl", shots=0, protocol="dirichlet", alpha=100.0)
    images = run_images(open_run(run, "1"), 100)
    share = read_dealt(run).deal.folds[0].sites[1]
    assert not images.held_out
    assert set(images.calibration) <= set(share.train)
    assert not set(images.calibration) & set(share.tests["personal"])


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


# --- parity and gates -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels(mini: Backbone) -> np.ndarray:
    digits = open_source("digits", 0)
    return mini.preprocess([digits.load(index) for index in range(0, 1700, 17)]).numpy()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_onnx_and_torch_agree_for_every_pattern_and_number_format(
    pattern: str, traced: Traced, pixels: np.ndarray, run: Path
) -> None:
    ticket, plain = traced(pattern)
    bank = class_features(adapter_of(open_run(run, "1"), open_source("digits", 0).class_names)).numpy()
    reference = torch_embeddings(ticket.vision, pixels)
    for quantization, agreement, cosine in (("none", 99, 0.9999), ("fp16", 99, 0.99), ("int8", 97, 0.95)):
        found = compare(reference, onnx_embeddings(reduced(plain, quantization), pixels), bank)
        assert found.top1_agreement >= agreement, (pattern, quantization)
        assert found.centred_cosine >= cosine, (pattern, quantization)


def test_a_model_is_smaller_where_its_matrices_or_its_numbers_are(traced: Traced) -> None:
    dense, half, zeros = (traced(pattern)[1] for pattern in ("dense", "structured", "unstructured"))
    size = len(reduced(dense, "none"))
    assert len(reduced(half, "none")) < 0.56 * size
    assert len(reduced(zeros, "none")) == pytest.approx(size, rel=0.001)
    assert len(reduced(dense, "int8")) < 0.35 * size
    assert len(reduced(dense, "fp16")) < 0.56 * size


def test_the_same_export_has_the_same_bytes_and_no_path_of_this_machine(
    run: Path, exported: Path, key: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "again", ExportOptions(site="1", quantization="int8", key=key, most_images=96, web=PAGE))
    for path in sorted(exported.rglob("*")):
        if path.is_file():
            content = (tmp_path / "again" / path.relative_to(exported)).read_bytes()
            assert content == path.read_bytes(), path.name
            assert str(tmp_path.parent).encode() not in content
            assert b"site-packages" not in content, path.name


def test_the_manifest_has_the_runs_own_figures(exported: Path, run: Path, mini: Backbone) -> None:
    """The dense accuracy is what the run's evaluation would have said of the site's novel test images."""
    manifest = json.loads((exported / "manifest.json").read_text())
    data = read_dealt(run)
    fold = data.deal.folds[0]
    novel = next(scope for scope in fold.scopes if scope.name == "novel")
    kept = manifest["generalization"]
    positions = fold.sites[1].tests["novel"]
    positions = positions[np.linspace(0, len(positions) - 1, kept["images"]).round().astype(int)]
    digits = open_source("digits", 0)
    features = mini.encode_images(mini.preprocess([digits.load(int(p)) for p in positions])).numpy()
    bank = class_features(adapter_of(open_run(run, "1"), data.deal.class_names)).numpy()[list(novel.classes)]
    right = np.asarray(novel.classes)[(features @ bank.T).argmax(1)] == data.deal.labels[positions]
    assert kept["dense"] == pytest.approx(100 * right.mean(), abs=1e-9)
    assert manifest["parity"]["images"] == 96
    assert manifest["run"]["site"] == "1"
    assert manifest["run"]["round"] == ROUND
    assert manifest["backbone"]["fingerprint"] == mini.fingerprint
    assert manifest["files"].keys() >= {"model.onnx", "classes.safetensors", "labels.json"}


@pytest.fixture
def already_traced(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Whatever tower an export traces, it gets the model of this pattern."""

    def use(pattern: str) -> None:
        monkeypatch.setattr("fedgraft.edge_export.encoder.export_onnx", lambda *_: traced(pattern)[1])

    return use


def test_a_bundle_that_loses_its_generalization_is_refused_with_the_figures(
    run: Path, key: Path, tmp_path: Path, already_traced: Callable[[str], None]
) -> None:
    already_traced("structured")
    ticket = TicketChoice(sparsity=0.5, distillation_steps=0)
    options = {"site": "1", "key": key, "most_images": 64, "ticket": ticket}
    with pytest.raises(UserError, match=r"accuracy falls from .* % \(dense\) to .* --force") as refused:
        export(run, tmp_path / "b", ExportOptions(**options))
    assert not (tmp_path / "b").exists()
    written = export(run, tmp_path / "b", ExportOptions(**options, force=True))
    assert written.manifest.forced
    assert written.manifest.forced[0] in str(refused.value)
    verify(tmp_path / "b")


def test_a_model_that_is_not_its_torch_ticket_is_refused(
    run: Path, key: Path, tmp_path: Path, already_traced: Callable[[str], None]
) -> None:
    already_traced("structured")
    with pytest.raises(UserError, match=r"same class as its torch ticket for .* %, and 99 % are needed"):
        export(run, tmp_path / "b", ExportOptions(site="1", key=key, most_images=32, max_novel_drop=100))
    assert not (tmp_path / "b").exists()


def test_a_prompt_that_is_tuned_again_on_the_ticket_fits_it_better(
    run: Path, key: Path, traced: Traced, already_traced: Callable[[str], None], tmp_path: Path
) -> None:
    already_traced("structured")
    ticket = traced("structured")[0]
    names = open_source("digits", 0).class_names
    images = run_images(open_run(run, "1"), 200)
    adapter = adapter_of(open_run(run, "1"), names)
    data = read_dealt(run).deal.folds[0]
    prepare = Preprocessing.from_config(adapter.vocabulary.backbone.preprocessor_config())
    features = torch_embeddings(ticket.vision, prepare.batch(images.load(images.training)))
    truths = np.searchsorted(data.train_classes, images.examples.labels[images.training])
    before = accuracy(features, class_features(adapter).numpy()[list(data.train_classes)], truths)
    retune(open_run(run, "1"), adapter, ticket, images, 20)
    assert accuracy(features, class_features(adapter).numpy()[list(data.train_classes)], truths) > before
    choice = TicketChoice(sparsity=0.5, distillation_steps=0)
    options = {"site": "1", "key": key, "most_images": 32, "force": True, "ticket": choice}
    export(run, tmp_path / "plain", ExportOptions(**options))
    export(run, tmp_path / "tuned", ExportOptions(**options, retune_epochs=1, labels=("one", "a cat")))
    plain, tuned = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("plain", "tuned"))
    assert (plain["run"]["retuned_epochs"], tuned["run"]["retuned_epochs"]) == (0, 1)
    assert plain["generalization"]["dense"] == tuned["generalization"]["dense"]
    with pytest.raises(UserError, match="--retune trains at a site"):
        export(run, tmp_path / "global", ExportOptions(**{**options, "site": "global"}, retune_epochs=1))


def test_a_ticket_from_disk_and_a_zip(
    run: Path, key: Path, traced: Traced, already_traced: Callable[[str], None], tmp_path: Path
) -> None:
    already_traced("structured")
    ticket = traced("structured")[0]
    ticket.save(tmp_path / "ticket")
    choice = TicketChoice(str(tmp_path / "ticket"))
    options = ExportOptions(site="1", ticket=choice, key=key, most_images=32, max_novel_drop=100)
    written = export(run, tmp_path / "b.zip", options)
    assert written.manifest.ticket.fingerprint == ticket.fingerprint
    assert written.manifest.ticket.heads == list(ticket.vision.shape.heads)
    assert Predictor(tmp_path / "b.zip").self_test() > 0.9999


@pytest.mark.parametrize(("name", "drawn"), [("natural", []), ("robust", [("robust", 0.0)])])
def test_a_robust_tower_is_made_so_even_where_nothing_is_removed(
    name: str, drawn: list[tuple[str, float]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_run(run, "1")
    adapter = adapter_of(source, source.deal.class_names)
    asked: list[tuple[str, float]] = []

    def draw(backbone: Backbone, config: TicketConfig, *_: object, **__: object) -> Ticket:
        asked.append((config.kind, config.sparsity))
        return dense_ticket(backbone)

    monkeypatch.setattr("fedgraft.edge_export.towers.draw_ticket", draw)
    chosen_ticket(source, adapter, TicketChoice(name), Observer())
    assert asked == drawn


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
        (["--quantize", "int4"], "There is: none, int8, fp16"),
        (["--ticket", "/no/such/ticket"], "/no/such/ticket"),
        (["--labels", "a,a"], "'a' is there twice"),
        (["--labels", "a,,b"], "is no label"),
        (["--labels", ""], "not a list of two"),
        (["--labels", "one"], "not a list of two"),
        (["--max-novel-drop", "-1"], "--max-novel-drop"),
        (["--unknown-rate", "1"], "--unknown-rate"),
        (["--fold", "x"], "no fold 'x'"),
        (["--images", "/no/such/images"], "/no/such/images"),
        (["--classes-for", "/no/such/bundle"], "/no/such/bundle"),
        (["--site-folder", "/no/such/site"], "/no/such/site"),
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
    import fedgraft.edge_export.encoder as exporting

    def trace(*_: object) -> None:
        raise AssertionError("the mistake was not found before the model was traced")

    monkeypatch.setattr(exporting, "export_onnx", trace)
    words = ["export", str(run), "--out", str(tmp_path / "b"), "--key", str(key), *arguments]
    monkeypatch.setattr(sys, "argv", ["fedgraft", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capfd.readouterr().err
    assert (stopped.value.code, printed.count("\n")) == (2, 1), printed
    assert said in printed
    assert not (tmp_path / "b").exists()


def test_what_is_no_run_and_a_place_that_is_taken(run: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run"):
        export(tmp_path, tmp_path / "b", ExportOptions(key=key))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not an empty directory"):
        export(run, tmp_path / "b", ExportOptions(key=key))
    (tmp_path / "b.zip").write_text("x")
    with pytest.raises(UserError, match="already"):
        export(run, tmp_path / "b.zip", ExportOptions(key=key))


def test_a_ticket_of_another_backbone(run: Path, key: Path, random_clip: Backbone, tmp_path: Path) -> None:
    dense_ticket(random_clip).save(tmp_path / "ticket")
    with pytest.raises(UserError, match="was drawn from a backbone with the fingerprint"):
        export(run, tmp_path / "b", ExportOptions(ticket=TicketChoice(str(tmp_path / "ticket")), key=key))


def test_a_site_without_its_personal_state(make_run: MakeRun) -> None:
    run = make_run("fedpgp", seed=1)
    for path in (run / "sites" / "000" / "000001").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="Site 1 has no personal parameters"):
        adapter_of(open_run(run, "1"), ("one", "two"))


def test_every_bundle_of_a_method_opens_with_one_encoder(
    make_run: MakeRun, exported: Path, key: Path, tmp_path: Path
) -> None:
    """A class bank replaces another whatever method it comes from, as long as the encoder is the same."""
    predictor = Predictor(exported, threads=1)
    for number, method in enumerate(("zeroshot", "promptfl"), start=2):
        out = tmp_path / method
        options = ExportOptions(classes_for=exported, key=key, most_images=32, max_novel_drop=100, version=number)
        export(make_run(method), out, options)
        predictor.swap_classes(out)
        bank = ClassBank.read(open_bundle(out))
        assert bank.version == number
        assert predictor.predict(open_source("digits", 0).load(0)).label == "zero"
