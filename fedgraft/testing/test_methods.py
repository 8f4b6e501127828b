"""What every registered method must keep: one matrix of tests over all of them."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

from fedgraft.backbones import Backbone
from fedgraft.backbones.deltas import Tower
from fedgraft.backbones.kept_images import kept_shape
from fedgraft.backbones.representation import FEATURES, Representation
from fedgraft.client.training import TrainingData, train, train_together
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.methods.adapter import Adapter, AdapterContext, Batch
from fedgraft.methods.method import Method
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome
from fedgraft.strategies.privacy import Participation
from fedgraft.testing.rounds import round_after

NAMES = ("blue solid circle", "g", "green dotted heart", "red striped star", "seven")
CLASSES = (0, 2, 4)


def _adapter(method: Method, backbone: Backbone, seed: int = 0, run: int = 0, **options: Any) -> Adapter:
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.", "the {}"))
    parsed = method.parse_options(options)
    return method.adapter(vocabulary, parsed, torch.Generator().manual_seed(seed), AdapterContext(run, site=0, sites=3))


def _batch(backbone: Backbone, seed: int = 0, form: Representation = FEATURES) -> TrainingData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(12, 1, *kept_shape(backbone, form), generator=generator)
    features = torch.nn.functional.normalize(images, dim=-1).to(form.torch_dtype)
    return TrainingData(features, torch.arange(12) % len(CLASSES), CLASSES)


@pytest.fixture(params=list(METHODS), ids=lambda method: str(method.name))
def method(request: pytest.FixtureRequest) -> Method:
    """Each method."""
    found: Method = request.param
    return found


@pytest.fixture
def trained(method: Method) -> Method:
    """Each method that has something to train."""
    if not method.trains:
        pytest.skip("this method has nothing to train")
    return method


def test_class_features_are_unit_rows_in_the_order_asked_for(method: Method, mini: Backbone) -> None:
    adapter = _adapter(method, mini)
    with torch.no_grad():
        features = adapter.class_features(CLASSES)
        swapped = adapter.class_features(CLASSES[::-1])
    assert features.shape == (len(CLASSES), mini.dim)
    assert torch.allclose(features.norm(dim=-1), torch.ones(len(CLASSES)), atol=1e-5)
    assert torch.allclose(features, swapped.flip(0), atol=1e-5)


def test_shared_and_personal_are_all_parameters_and_never_overlap(method: Method, mini: Backbone) -> None:
    adapter = _adapter(method, mini)
    shared, personal = set(adapter.shared()), set(adapter.personal())
    assert not shared & personal
    names = {name for name, _ in adapter.named_parameters()}
    assert shared | personal <= names
    assert {*shared, *personal, *adapter.server_state()} >= names
    assert personal == set(adapter.personal_names)


def test_a_method_that_shares_nothing_says_that_it_takes_no_strategy(method: Method, mini: Backbone) -> None:
    assert _adapter(method, mini).shared() or method.takes_no_strategy


def test_no_parameter_of_the_backbone_is_trained(method: Method, mini: Backbone) -> None:
    """The backbone hangs on the adapter through its vocabulary and must not become one of its modules."""
    towers: tuple[Tower, ...] = ("text", "image")
    frozen = {found.weight.data_ptr() for tower in towers for found in mini.linear_maps(tower).values()}
    assert frozen
    assert not frozen & {parameter.data_ptr() for parameter in _adapter(method, mini).parameters()}


def test_training_lowers_the_loss_and_moves_what_it_trains(trained: Method, mini: Backbone) -> None:
    adapter = _adapter(trained, mini)
    data = _batch(mini, form=adapter.representation(mini, adapter.options))
    before = {name: parameter.clone() for name, parameter in adapter.named_parameters()}
    config = RunConfig(method=trained.name, local_epochs=15, lr=0.05)
    with torch.no_grad():
        first = float(adapter.loss(data.features[:, 0], data.labels, CLASSES))
    train(adapter, data, config, np.random.default_rng(0))
    with torch.no_grad():
        assert float(adapter.loss(data.features[:, 0], data.labels, CLASSES)) < first
    moved = {name for name, parameter in adapter.named_parameters() if not torch.equal(parameter, before[name])}
    learnt = {name for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    assert learnt <= moved
    assert learnt & {*adapter.shared(), *adapter.personal()}


def test_the_same_seed_builds_the_same_adapter(method: Method, mini: Backbone) -> None:
    one, same, other = (_adapter(method, mini, seed, seed) for seed in (3, 3, 4))
    values, again, others = (list(adapter.state_dict().values()) for adapter in (one, same, other))
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))
    assert not values or method.adapter.is_drawn != all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


def test_loading_what_was_taken_out_changes_nothing(method: Method, mini: Backbone) -> None:
    source, target = _adapter(method, mini, 1), _adapter(method, mini, 2)
    source.load({name: value + 0.01 for name, value in {**source.shared(), **source.personal()}.items()})
    target.load({**source.server_state(), **source.shared(), **source.personal()})
    with torch.no_grad():
        assert torch.equal(source.class_features(CLASSES), target.class_features(CLASSES))


def test_no_optimizer_state_crosses_sites(trained: Method, mini: Backbone) -> None:
    """T2: what a site learns does not depend on who trained before it in the same process."""
    config = RunConfig(method=trained.name, local_epochs=2, momentum=0.9)

    def second(first_seed: int | None) -> list[torch.Tensor]:
        adapter = _adapter(trained, mini)
        form = adapter.representation(mini, adapter.options)
        if first_seed is not None:
            before = _batch(mini, first_seed, form)
            train(_adapter(trained, mini, 7), before, config, np.random.default_rng(first_seed))
        train(adapter, _batch(mini, form=form), config, np.random.default_rng(0))
        return [parameter.detach() for parameter in adapter.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(second(None), second(5), strict=True))


def test_several_sites_in_one_pass_have_the_losses_gradients_and_features_of_each_alone(
    method: Method, mini: Backbone
) -> None:
    adapters = [_adapter(method, mini, seed) for seed in range(3)]
    batches = []
    for seed, size in enumerate((12, 5, 1)):
        data = _batch(mini, seed, adapters[0].representation(mini, adapters[0].options))
        batches.append(Batch(data.features[:size, 0], data.labels[:size]))
    together = type(adapters[0]).losses(adapters, batches, CLASSES)
    for adapter, batch, loss in zip(adapters, batches, together, strict=True):
        alone = adapter.loss(*batch, CLASSES)
        assert torch.allclose(loss, alone, rtol=1e-5)
        parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        if not parameters:
            continue
        for mine, other in zip(
            torch.autograd.grad(loss, parameters, retain_graph=True),
            torch.autograd.grad(alone, parameters),
            strict=True,
        ):
            assert (mine - other).norm() <= 1e-4 * other.norm()
    with torch.no_grad():
        for adapter, features in zip(adapters, type(adapters[0]).all_class_features(adapters, CLASSES), strict=True):
            assert torch.allclose(features, adapter.class_features(CLASSES), atol=1e-5)


def test_what_a_strategy_adds_to_the_loss_finds_the_features_where_the_method_says_so(
    trained: Method, mini: Backbone
) -> None:
    """Otherwise a strategy such as m2mix would be accepted, and do nothing."""
    adapter = _adapter(trained, mini)
    data = _batch(mini, form=adapter.representation(mini, adapter.options))
    seen: list[torch.Size] = []

    def term(images: torch.Tensor, class_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend((images.shape, class_features.shape, labels.shape))
        return images.sum() * 0

    adapter.beside = term
    adapter.losses([adapter], [Batch(data.features[:, 0], data.labels)], CLASSES)
    assert bool(seen) == adapter.loss_of_features
    assert set(seen) <= {(len(data.labels), mini.dim), (len(CLASSES), mini.dim), (len(data.labels),)}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_sites_trained_side_by_side_learn_what_each_learns_alone(
    trained: Method, optimizer: Literal["adam", "sgd"], mini: Backbone
) -> None:
    """Sites of different sizes take different numbers of steps; one that is through stands still."""
    config = RunConfig(method=trained.name, local_epochs=2, batch_size=4, optimizer=optimizer, weight_decay=0.01)
    sizes = (12, 5, 1)
    tolerance = 2e-2 if optimizer == "adam" else 1e-3  # Adam divides by the size of a gradient, however small it is

    def site(number: int) -> tuple[Adapter, TrainingData, np.random.Generator]:
        like = _adapter(trained, mini)
        data = _batch(mini, number, like.representation(mini, like.options))
        part = TrainingData(data.features[: sizes[number]], data.labels[: sizes[number]], CLASSES)
        return _adapter(trained, mini, number), part, np.random.default_rng(number)

    adapters, data, rngs = zip(*map(site, range(3)), strict=True)
    together = train_together(adapters, data, config, rngs)
    for number, loss in enumerate(together):
        alone, part, rng = site(number)
        assert loss == pytest.approx(train(alone, part, config, rng), rel=1e-4)
        start = _adapter(trained, mini, number)
        for mine, other, before in zip(
            adapters[number].parameters(), alone.parameters(), start.parameters(), strict=True
        ):
            assert (mine - other).norm() <= tolerance * (other - before).norm()


def test_every_option_changes_something(trained: Method, mini: Backbone) -> None:
    """An option that is parsed and never read would go unnoticed; its example must make a difference."""

    def learnt_with(**options: Any) -> list[torch.Tensor]:
        adapter = _adapter(trained, mini, **options)
        before = {name: value.numpy().copy() for name, value in adapter.server_state().items()}
        data = _batch(mini, form=adapter.representation(mini, adapter.options))
        train(adapter, data, RunConfig(method=trained.name, local_epochs=3), np.random.default_rng(0))
        learnt = {name: value.numpy() for name, value in adapter.shared().items()}
        others = {name: np.roll(value, 1, axis=-1) for name, value in learnt.items()}
        answers = [Answer(site, arrays, 10 + site**2, 0.0) for site, arrays in enumerate((learnt, others, learnt))]
        rule = trained.rule_for(adapter.options)
        outcome = rule.aggregate(answers, round_after(before, asked=3), {}) if learnt else Outcome({})
        after, own = outcome.arrays, rule.own(0, outcome.arrays, outcome.state) if learnt else {}
        promise = rule.privacy()
        spent = 0.0 if promise is None else promise.spent([Participation([0], [0], steps=1)], 10)["epsilon"]
        return [
            torch.tensor(spent),
            *(parameter.detach() for parameter in adapter.parameters()),
            *(torch.from_numpy(arrays[name]) for arrays in (after, own) for name in sorted(arrays)),
        ]

    plain = learnt_with()
    for name, field in trained.options.model_fields.items():
        changed = learnt_with(**{name: (field.examples or [None])[0]})
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), name


def test_its_rule_keeps_names_shapes_and_values_where_all_sites_answer_alike(trained: Method, mini: Backbone) -> None:
    """What goes down after a round is what a site can load: the rule and the adapter fit each other."""
    adapter = _adapter(trained, mini)
    state = {name: value.numpy().copy() for name, value in adapter.server_state().items()}
    shared = {name: value.numpy().copy() for name, value in adapter.shared().items()}
    if not shared:
        pytest.skip("this method shares nothing")
    answers = [Answer(site, shared, 10, 0.0) for site in range(3)]
    rule = trained.rule_for(adapter.options)
    kept, left_out = rule.check_answers(answers, state, 1)
    assert (len(kept), left_out) == (3, [])
    start = rule.start(kept[0], state)
    assert {name: array.shape for name, array in start.items()} == {name: array.shape for name, array in shared.items()}
    after = rule.aggregate(kept, round_after(state, asked=3), {}).arrays
    assert {name: array.shape for name, array in after.items()} == {name: array.shape for name, array in state.items()}
    assert all(np.isfinite(array).all() for array in after.values())
    adapter.load({name: torch.from_numpy(array) for name, array in after.items()})
