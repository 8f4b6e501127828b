"""The first thing that a newcomer runs says what was measured, leaves what it names, and can be run again."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fedgraft.core.errors import UserError
from fedgraft.device.bundle import open_bundle
from fedgraft.quickstart import Shown, quickstart
from fedgraft.simulation.engine import Engine

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"data": "digits", "sites": 2, "rounds": 1, "shots": 2}
ENTRIES = ("zeroshot", "promptfl", "fedit+anchored(drift=0.08)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "out"


@pytest.fixture(scope="module")
def shown(folder: Path, engine: Engine) -> Shown:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder.parent / "config"))
        patch.setattr("fedgraft.simulation.comparison.open_engine", lambda resources: nullcontext(engine))
        return quickstart(folder, settings=SMALL, entries=ENTRIES, site=1)


def test_everything_that_it_names_is_there(shown: Shown, folder: Path) -> None:
    assert {shown.report, shown.bundle, shown.image} <= set(folder.iterdir())
    assert open_bundle(shown.bundle).manifest.content["run"]["site"] == "1"
    assert shown.prediction.label in shown.prediction.probabilities
    assert shown.label in shown.prediction.probabilities


def test_what_it_says_is_what_was_measured(shown: Shown) -> None:
    results = {entry["method"]: entry["metrics"] for entry in shown.comparison["methods"]}
    hm = {name: metrics["hm"]["mean"] for name, metrics in results.items()}
    assert shown.best == max(ENTRIES[1:], key=hm.__getitem__)
    own, before = (results[name]["local"]["mean"] for name in (shown.best, "zeroshot"))
    assert f"{own:.1f} % on a site's own classes" in shown.sentences[0]
    assert f"{own - before:+.1f} points" in shown.sentences[0]
    assert f"{results[shown.best]['novel']['mean']:.1f} % on novel" in shown.sentences[1]
    assert str(shown.report) in shown.sentences[2]


def test_a_second_call_keeps_the_bundle_and_says_the_same(
    shown: Shown, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained_again(*_: object) -> None:
        raise AssertionError("a federation began")

    monkeypatch.setattr("fedgraft.simulation.comparison.open_engine", lambda resources: nullcontext(engine))
    monkeypatch.setattr("fedgraft.server.coordinator.Coordinator.run", trained_again)
    assert quickstart(folder, settings=SMALL, entries=ENTRIES, site=1) == shown
    with pytest.raises(UserError, match=r"site 1, and now .* site 0"):
        quickstart(folder, settings=SMALL, entries=ENTRIES, site=0)


def test_a_gain_needs_something_to_be_measured_against(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one that does not"):
        quickstart(tmp_path, entries=("promptfl", "fedpgp"))
