"""From a run to the class bank of a site: the right prompt, the right labels, the right fold."""

import shutil
from pathlib import Path

import pytest
import torch

from fedgraft.backbones import Backbone
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.edge_export.measurement_images import run_images
from fedgraft.edge_export.options import ClassBankOptions, parse_labels
from fedgraft.edge_export.trained_run import TrainedRun, class_features
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.checkpoints import Checkpoints
from fedgraft.runs.personal_state import PersonalState
from tests.conftest import WriteImage
from tests.edge_export.conftest import ROUND, MakeRun


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("site", ["1", "global"])
def test_every_method_is_baked_into_the_features_that_it_classifies_with(
    method: str, site: str, make_run: MakeRun, mini: Backbone
) -> None:
    trained = TrainedRun.open(make_run(method), site)
    untrained = trained.plan.adapter(Vocabulary(mini, ("one", "two"), ("{}",)))
    if site == "global" and untrained.personal() and not untrained.shared():
        with pytest.raises(UserError, match="shares nothing between sites"):
            trained.adapter()
        return
    bank = class_features(trained.adapter())
    names = trained.split.class_names
    assert bank.shape == (len(names), mini.dim)
    assert bank.dtype == torch.float32
    assert torch.allclose(bank.norm(dim=1), torch.ones(len(names)), atol=1e-6)
    adapter = trained.plan.adapter(Vocabulary(mini, names, trained.split.templates), trained.site, 0, trained.round)
    checkpoint = trained.directory.checkpoints.newest(0, mini.fingerprint)
    assert checkpoint is not None
    adapter.load({name: torch.from_numpy(array.copy()) for name, array in checkpoint.arrays.items()})
    if site == "global":
        adapter.load(adapter.impersonal(adapter.shared()))
    elif adapter.personal_names:
        state = PersonalState(trained.directory.personal_state(0, 1), trained.plan.identity(mini))
        personal = state.load(ROUND)
        assert personal is not None
        adapter.load(personal)
    with torch.no_grad():
        expected = adapter.class_features(tuple(range(len(names))))
    assert torch.allclose(bank, expected, atol=1e-5)


def test_sites_have_their_own_banks_and_the_global_prompt_is_the_shared_one_alone(run: Path) -> None:
    adapters = [TrainedRun.open(run, site).adapter() for site in ("0", "1", "global")]
    assert not torch.allclose(class_features(adapters[0]), class_features(adapters[1]), atol=1e-4)
    with torch.no_grad():
        assert torch.equal(adapters[2].prompts(), adapters[2].sigma)


def test_the_checkpoint_is_read_once_however_many_adapters_are_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    newest = Checkpoints.newest
    monkeypatch.setattr(Checkpoints, "newest", lambda self, *given: reads.append(given) or newest(self, *given))
    trained = TrainedRun.open(run, "1")
    trained.adapter()
    trained.adapter(("seven", "a red car"))
    assert len(reads) == 1


def test_labels_of_ones_own(site_1: TrainedRun) -> None:
    both = class_features(site_1.adapter(("seven", "a red car")))
    assert both.shape[0] == 2
    assert torch.allclose(both[0], class_features(site_1.adapter(), ("seven",))[0], atol=1e-5)


def test_a_fold_is_named_where_there_are_several(make_run: MakeRun, write_image: WriteImage, tmp_path: Path) -> None:
    for number, domain in enumerate(("faded", "flat")):
        for shade, label in enumerate(("cat", "dog")):
            for image in range(4):
                write_image(tmp_path / domain / label / f"{image}.png", (100 * number, 100 * shade, 50 * image))
    run = make_run("promptfl", data=f"folder:{tmp_path}", protocol="leave-one-domain-out", sites=1, shots=1)
    with pytest.raises(UserError, match=r"name one with --fold: faded, flat"):
        TrainedRun.open(run, "0")
    with pytest.raises(UserError, match="no fold 'photo'"):
        TrainedRun.open(run, "0", "photo")
    trained = TrainedRun.open(run, "0", "flat")
    assert trained.fold == 1
    gate = run_images(trained, 50).gate
    assert gate is not None
    assert gate.scope == trained.plan.protocol.preserved


def test_a_run_of_the_first_release_is_exported_as_it_was(run: Path, site_1: TrainedRun, tmp_path: Path) -> None:
    """It called its split a deal, and every configuration had the options of every protocol."""
    old = Path(shutil.copytree(run, tmp_path / "old"))
    (old / "split.safetensors").rename(old / "deal.safetensors")
    settings = (old / "config.toml").read_text().split("[", 1)[0]
    legacy = 'partition = "dirichlet"\nalpha = 0.5\nclasses_per_site = 2\ndomains = false\nclass_names = []\n'
    (old / "config.toml").write_text(f'{settings}{legacy}[method_options]\nctx_init = "the digit"\n')
    assert torch.equal(class_features(TrainedRun.open(old, "1").adapter()), class_features(site_1.adapter()))


def test_a_site_without_its_personal_state_is_named(make_run: MakeRun) -> None:
    run = make_run("fedpgp", seed=1)
    for path in (run / "sites" / "000" / "000001").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="Site 1 has no personal parameters"):
        TrainedRun.open(run, "1").adapter()


def test_labels_from_a_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a red car\n\na cat\n")
    assert parse_labels(str(tmp_path / "labels.txt")) == ("a red car", "a cat")
    assert parse_labels("a red car, a cat") == ("a red car", "a cat")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        parse_labels(str(tmp_path / "labels.txt"))


@pytest.mark.parametrize("labels", [("a", "a"), ("a", "", "b"), ("one",), ()])
def test_labels_that_no_device_takes_are_refused_before_anything_is_loaded(labels: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="'labels' of 'export' has the value"):
        ClassBankOptions.build({"labels": labels})
