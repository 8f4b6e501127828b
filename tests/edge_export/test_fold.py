"""From a run to the class features of a site: the right prompt, labels, and the fold that is meant."""

from pathlib import Path

import pytest
import torch

from fedgraft.methods.adapter import Vocabulary
from fedgraft.backbones import Backbone
from fedgraft.runs.personal_state import PersonalState
from fedgraft.edge_export.trained_run import adapter_of, class_features, open_run, parse_labels
from fedgraft.edge_export.measurement_images import run_images
from fedgraft.core.errors import UserError
from fedgraft.methods import load_method, method_names
from fedgraft.runs.run_directory import RunDirectory
from tests.edge_export.conftest import ROUND, MakeRun


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("site", ["1", "global"])
def test_every_method_folds_into_the_features_that_it_classifies_with(
    method: str, site: str, make_run: MakeRun, mini: Backbone
) -> None:
    run = make_run(method)
    loaded = load_method(method)
    if site == "global" and method == "local":
        with pytest.raises(UserError, match="shares nothing between sites"):
            adapter_of(open_run(run, site), ("one", "two"))
        return
    source = open_run(run, site)
    names = source.deal.class_names
    bank = class_features(adapter_of(source, names))
    assert bank.shape == (len(names), mini.dim)
    assert bank.dtype == torch.float32
    assert torch.allclose(bank.norm(dim=1), torch.ones(len(names)), atol=1e-6)
    adapter = loaded.adapter(
        Vocabulary(mini, names, source.deal.templates),
        loaded.parse_options(source.config.method_options),
        torch.Generator().manual_seed(7),
        adapter_of(source, names).seat,
    )
    checkpoint = RunDirectory(run).newest_checkpoint(0, mini.fingerprint)
    assert checkpoint is not None
    adapter.load({name: torch.from_numpy(array.copy()) for name, array in checkpoint.arrays.items()})
    if site == "global":
        adapter.load({name: torch.zeros_like(value) for name, value in adapter.personal().items()})
    elif adapter.personal_names:
        identity = {"method": method, "fingerprint": mini.fingerprint}
        personal = PersonalState(run / "sites" / "000" / "000001", identity).load(ROUND)
        assert personal is not None
        adapter.load(personal)
    with torch.no_grad():
        expected = adapter.class_features(tuple(range(len(names))))
    assert torch.allclose(bank, expected, atol=1e-5)


def test_sites_have_banks_of_their_own_and_the_global_prompt_is_the_shared_one_alone(run: Path) -> None:
    names = open_run(run, "global").deal.class_names
    banks = [class_features(adapter_of(open_run(run, site), names)) for site in ("0", "1", "global")]
    assert not torch.allclose(banks[0], banks[1], atol=1e-4)
    adapter = adapter_of(open_run(run, "global"), names)
    with torch.no_grad():
        assert torch.equal(adapter.prompts(), adapter.sigma)


def test_labels_of_ones_own(run: Path) -> None:
    source = open_run(run, "1")
    both = class_features(adapter_of(source, ("seven", "a red car")))
    assert both.shape[0] == 2
    assert torch.allclose(
        both[0], class_features(adapter_of(source, source.deal.class_names), ("seven",))[0], atol=1e-5
    )


def test_a_fold_has_to_be_named_where_there_are_several(make_run: MakeRun) -> None:
    run = make_run("promptfl", data="shapes:faded,flat", protocol="leave-one-domain-out", sites=1, shots=1)
    with pytest.raises(UserError, match=r"name one with --fold: faded, flat"):
        open_run(run, "0")
    with pytest.raises(UserError, match="no fold 'photo'"):
        open_run(run, "0", "photo")
    assert open_run(run, "0", "flat").fold == 1
    gate = run_images(open_run(run, "0", "flat"), 50).gate
    assert gate is not None
    assert gate.scope == "target"


def test_labels_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a red car\n\na cat\n")
    assert parse_labels(str(tmp_path / "labels.txt")) == ("a red car", "a cat")
    assert parse_labels("a red car, a cat") == ("a red car", "a cat")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        parse_labels(str(tmp_path / "labels.txt"))
