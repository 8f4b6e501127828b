"""What the server sees of drift: nothing of the run's own classes, nothing at the written words, more with distance."""

import numpy as np
import pytest

from fedgraft import RunConfig, UserError
from fedgraft.backbones import Backbone
from fedgraft.backbones.drift_classes import drift_classes
from fedgraft.data.worlds import shapes
from fedgraft.flower.messages import Arrays
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.drift_monitor import DriftMonitor, unheld_names
from fedgraft.server.name_probe import NameProbe

WORDS = {"ctx_init": "a photo of a"}
CLASSES = ("x", "Star")


def _monitor(backbone: Backbone, method: str, options: dict[str, object]) -> tuple[DriftMonitor, Arrays]:
    """The monitor of a run, and its shared parameters of round 0."""
    plan = Plan.of(RunConfig.build({"method": method, "strategy": "drift", "method_options": options}))
    state = plan.adapter(Vocabulary(backbone, CLASSES, ("a photo of a {}.",))).server_state()
    initial = {name: value.numpy().copy() for name, value in state.items()}
    return DriftMonitor(plan, backbone, CLASSES, initial), initial


@pytest.mark.parametrize(
    ("method", "options", "size"),
    [("promptfl", WORDS, 0.1), ("fedit", {}, 0.1), ("fedex-lora", {}, 1e-3), ("flora", {}, 1e-3)],
)
def test_nothing_has_drifted_at_the_written_words_and_more_does_with_every_step(
    method: str, options: dict[str, object], size: float, mini: Backbone
) -> None:
    monitor, initial = _monitor(mini, method, options)
    assert monitor.drift(initial) == pytest.approx(0, abs=1e-5)
    rng = np.random.default_rng(0)
    direction = {name: rng.normal(0, size, array.shape).astype(np.float32) for name, array in initial.items()}
    drifts = [monitor.drift({n: a + s * direction[n] for n, a in initial.items()}) for s in (0.3, 1.0, 3.0)]
    assert 1e-6 < drifts[0] < drifts[1] < drifts[2] <= 2


def test_the_same_arrays_are_measured_once(mini: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, initial = _monitor(mini, "promptfl", {})
    measured: list[Arrays] = []
    features = NameProbe.features
    monkeypatch.setattr(NameProbe, "features", lambda probe, arrays: measured.append(arrays) or features(probe, arrays))
    copied = {name: array.copy() for name, array in initial.items()}
    moved = {name: array + np.float32(0.1) for name, array in initial.items()}
    assert monitor.drift(initial) == monitor.drift(copied) != monitor.drift(moved)
    assert len(measured) == 2


@pytest.mark.parametrize("method", ["promptfl", "fedpgp", "kgcoop", "proxprompt", "ffa-lora", "fedex-lora", "flora"])
def test_a_method_whose_shared_parameters_show_can_be_anchored(method: str, mini: Backbone) -> None:
    _monitor(mini, method, {})[0].require_sensitivity()


@pytest.mark.parametrize(("method", "options"), [("fedsa-lora", {}), ("fedit", {"tower": "image"})])
def test_what_does_not_show_is_refused(method: str, options: dict[str, object], mini: Backbone) -> None:
    """With B personal and zero at the server, A alone changes nothing there; nor does the image tower."""
    with pytest.raises(UserError, match="shares does not change them"):
        _monitor(mini, method, options)[0].require_sensitivity()


def test_the_lists_are_broad_and_hold_no_class_of_the_run(mini: Backbone) -> None:
    known, common = drift_classes("mini"), drift_classes("some/clip")
    assert len(set(known)) == len(known) > 150
    assert len(set(common)) == len(common) > 400
    assert not {combination.name for combination in shapes.HELD_OUT} & set(known)
    assert "star" in known
    assert "star" not in unheld_names(mini, CLASSES)
