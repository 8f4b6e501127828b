"""What a learnt context would lose: words as the authors write them, room for long names, a context for each class."""

from typing import Any

import pytest
import torch

from fedgraft import RunConfig, UserError
from fedgraft.backbones import Backbone
from fedgraft.config.registry import METHODS
from fedgraft.methods.adapter import Adapter, AdapterContext
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.server.drift_monitor import DriftMonitor

NAMES = ("red star", "seven", "blue circle")


def _adapter(backbone: Backbone, method: str = "promptfl", names: tuple[str, ...] = NAMES, **options: Any) -> Adapter:
    found = METHODS.load(method)
    vocabulary = Vocabulary(backbone, names, ("a photo of a {}.",))
    return found.adapter(vocabulary, found.parse_options(options), torch.Generator().manual_seed(0), AdapterContext())


def test_underscores_of_initial_words_are_spaces(mini: Backbone) -> None:
    one, other = (_adapter(mini, ctx_init=words) for words in ("a_photo_of_a", "a photo of a"))
    assert torch.equal(one.context, other.context)
    with torch.no_grad():
        written = mini.text.encode_texts([f"a photo of a {name}." for name in NAMES])
        assert torch.allclose(one.class_features((0, 1, 2)), written, atol=1e-5)


@pytest.mark.parametrize("method", ["promptfl", "local", "kgcoop", "proxprompt", "prograd"])
def test_a_class_learns_from_its_own_context_alone(method: str, mini: Backbone) -> None:
    adapter = _adapter(mini, method, n_ctx=2, class_context=True)
    assert adapter.context.shape == (1, 3, 2, mini.text.width)
    features = adapter.class_features((2, 0))
    (gradient,) = torch.autograd.grad(features[0, 0], adapter.context)
    assert gradient[0, 2].norm() > 0
    assert gradient[0, :2].norm() == 0


@pytest.mark.parametrize(
    "name", ["a {} b", "{0}", "a 'quoted' \"name\"", "\u043a\u043e\u0448\u043a\u0430", "jack-o'-lantern"]
)
def test_a_name_stands_in_prompts_letter_by_letter(name: str, mini: Backbone) -> None:
    """Braces in a name are no place for another."""
    vocabulary = Vocabulary(mini, (name, "seven"), ("a photo of a {}.",))
    written = mini.text.encode_texts([f"a photo of a {name}."])[0]
    assert torch.allclose(vocabulary.zero_shot[0], written, atol=1e-6)
    (context, tokens), *_ = vocabulary.template_prompts((0, 1))
    assert torch.allclose(mini.text.encode_prompts(context[None], tokens)[0, 0], written, atol=1e-5)


def test_a_name_that_no_prompt_can_hold_is_told_as_that(mini: Backbone) -> None:
    name = "x y z " * 100
    with pytest.raises(UserError, match=r"The class name 'x y z .*' has 302 tokens.* shorten it") as error:
        _adapter(mini, names=("red star", name))
    assert "n_ctx" not in str(error.value)


def test_a_template_that_is_too_long_with_a_name_is_told_with_both(mini: Backbone) -> None:
    """It was cut off without a word, and with it the end of the name."""
    room = mini.text.max_tokens - 2
    fits, template = "red star", "of " * (room - len(mini.text.embed_words("red star.")))
    vocabulary = Vocabulary(mini, (fits, "a blue star"), (f"{template}{{}}.",))
    said = r"The template 'of of .*\{\}\.' with the class name 'a blue star' in it has \d+ tokens, .* shorten one"
    for ask in (lambda: vocabulary.zero_shot, lambda: vocabulary.template_prompts((0, 1))):
        with pytest.raises(UserError, match=said):
            ask()
    whole = Vocabulary(mini, (fits, "red"), (f"{template}{{}}.",))
    assert torch.isfinite(whole.zero_shot).all()
    assert len(whole.template_prompts((0, 1))) == 1


def test_a_context_that_leaves_no_room_for_a_name_is_told_with_the_largest_that_does(mini: Backbone) -> None:
    with pytest.raises(UserError, match=r"'red star' need .* Lower n_ctx to") as error:
        _adapter(mini, n_ctx=mini.text.max_tokens)
    largest = int(str(error.value).partition("Lower n_ctx to ")[2].split()[0])
    _adapter(mini, n_ctx=largest)
    with pytest.raises(UserError):
        _adapter(mini, n_ctx=largest + 1)


def test_drift_on_other_classes_is_refused_where_each_class_has_its_own_context(mini: Backbone) -> None:
    plan = Plan.of(RunConfig(method="promptfl", strategy="anchored(drift=0.1)", method_options={"class_context": True}))
    with pytest.raises(UserError, match="a context for each class"):
        DriftMonitor(plan, mini, NAMES, {}).require_sensitivity()
