"""What every registered data source must keep; one that needs a folder or a network is opened by its own tests."""

import numpy as np
import pytest

from fedgraft.config.registry import SOURCES
from fedgraft.core.errors import UserError
from fedgraft.data.examples import KEY_BYTES, Examples
from fedgraft.data.sources.source import Source, find_source, open_source

_NEEDY = [source for source in SOURCES if any(field.is_required() for field in source.options.model_fields.values())]
_FREE = [source for source in SOURCES if source not in _NEEDY]


def _written(source: Source) -> str:
    if not source.argument:
        return source.name
    return f"{source.name}:{(source.options.model_fields[source.argument].examples or [''])[0]}"


@pytest.fixture(params=_FREE, ids=lambda source: str(source.name), scope="module")
def source(request: pytest.FixtureRequest) -> Source:
    """Each source that opens without options."""
    found: Source = request.param
    return found


@pytest.fixture(scope="module")
def examples(source: Source) -> Examples:
    """Its examples, read once; with the argument's example where it has one, which often are fewer."""
    return open_source(_written(source), 0)


def test_labels_and_domains_are_positions_in_their_names(examples: Examples) -> None:
    assert len(examples.labels) == len(examples.domains) == len(examples.keys) == len(examples)
    assert set(np.unique(examples.labels)) == set(range(len(examples.class_names)))
    assert set(np.unique(examples.domains)) <= set(range(len(examples.domain_names)))
    assert set(examples.class_protocol_domains) <= set(examples.domain_names)


def test_images_are_rgb_and_keyed_by_content(examples: Examples) -> None:
    assert examples.keys.shape == (len(examples), KEY_BYTES)
    assert examples.load(0).mode == examples.load(len(examples) - 1).mode == "RGB"


def test_templates_have_one_place_for_the_class_name(examples: Examples) -> None:
    assert examples.templates
    assert all(template.count("{}") == 1 for template in examples.templates)


def test_the_same_seed_gives_the_same_images(source: Source, examples: Examples) -> None:
    again = open_source(_written(source), 0)
    assert np.array_equal(again.keys, examples.keys)
    assert np.array_equal(again.labels, examples.labels)
    assert again.class_names == examples.class_names


@pytest.mark.parametrize("source", list(SOURCES), ids=lambda source: str(source.name))
def test_a_source_is_written_as_its_usage_says(source: Source) -> None:
    assert source.usage.startswith(source.name)
    assert not source.argument or source.argument in source.options.model_fields
    assert not source.folder or source.folder in source.options.model_fields
    if not source.argument:
        with pytest.raises(UserError, match="takes no argument"):
            find_source(f"{source.name}:something")


@pytest.mark.parametrize("needy", _NEEDY, ids=lambda source: str(source.name))
def test_a_source_that_lacks_its_argument_says_how_it_is_written(needy: Source) -> None:
    with pytest.raises(UserError, match=needy.usage if needy.argument else needy.name):
        find_source(needy.name)
