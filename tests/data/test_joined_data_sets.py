"""What a table over several data sets would lose: each one's classes, templates, images and test images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedgraft.backbones import Backbone
from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import sorted_into_tables
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DataSet, Examples
from fedgraft.data.joined import blocks, class_templates, join
from fedgraft.data.sources.source import open_source
from fedgraft.data.split import Fold
from fedgraft.data.split import test_mask as mask_of_tests
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary


@pytest.fixture
def pair(examples_of: Any) -> Examples:
    """Pets with 8 classes and textures with 5, some of the same names."""
    pets = replace(examples_of(8), templates=("a photo of a {}, a type of pet.",))
    textures = replace(examples_of(5, contents=range(1000, 1100)), templates=("{} texture.", "a {} surface."))
    return join([DataSet("pets", pets), DataSet("textures", textures)])


def _fold(examples: Examples, **chosen: Any) -> Fold:
    config = RunConfig.build(sorted_into_tables({"shots": 4, **chosen}))
    (fold,) = Plan.of(config).split(examples).folds
    return fold


def test_a_data_set_keeps_its_classes_templates_and_test_images(pair: Examples) -> None:
    pets, textures = blocks(pair)
    assert (pets.classes, textures.classes) == (tuple(range(8)), tuple(range(8, 13)))
    assert (pair.class_names[0], pair.class_names[8]) == ("class 00", "class 00")
    assert class_templates(pair)[7:9] == (("a photo of a {}, a type of pet.",), ("{} texture.", "a {} surface."))
    assert set(pair.labels[textures.positions]) == set(textures.classes)
    config = RunConfig()
    alone = [mask_of_tests(each.examples, config) for each in pair.data_sets]
    np.testing.assert_array_equal(mask_of_tests(pair, config), np.concatenate(alone))


def test_an_image_is_the_one_that_its_data_set_has_at_its_place(examples_of: Any) -> None:
    one, other = examples_of(2, 3), examples_of(2, 5)
    joined = join([DataSet("one", one), DataSet("other", other)])
    assert joined.load(5).getpixel((0, 0)) == one.load(5).getpixel((0, 0))
    assert joined.load(6).getpixel((0, 0)) == other.load(0).getpixel((0, 0))
    assert joined.load(15).getpixel((0, 0)) == other.load(9).getpixel((0, 0))


def test_class_features_are_under_the_templates_of_their_own_data_set(mini: Backbone) -> None:
    templates = [("a photo of a {}.",), ("{}", "the {}"), ("a photo of a {}.",)]
    vocabulary = Vocabulary(mini, ("red star", "seven", "seven"), (), templates)
    for index, own in enumerate(templates):
        alone = mini.text.encode_classes([vocabulary.class_names[index]], own)[0]
        np.testing.assert_allclose(vocabulary.zero_shot[index].numpy(), alone.numpy(), atol=1e-6)
    written = vocabulary.template_prompts((1, 0))
    assert len(written) == 2, "the class with one template repeats it"


def test_leaving_one_out_keeps_each_data_sets_own_splits(examples_of: Any) -> None:
    """One with splits trains and is measured by them; one without is taken whole, as it is alone."""
    splits = np.repeat([0, 1, 2], [20, 10, 10]).astype(np.int8)
    pets = replace(examples_of(2), splits=splits)
    joined = join([DataSet("pets", pets), DataSet("textures", examples_of(2, contents=range(1000, 1040)))])
    config = RunConfig(protocol="leave-one-domain-out", sites=1, shots=0)
    without_pets, without_textures = Plan.of(config).split(joined).folds
    assert without_pets.sites[0].tests["target"].tolist() == list(range(30, 40))
    assert without_pets.sites[0].train.tolist() == list(range(40, 80))
    assert without_textures.sites[0].tests["target"].tolist() == list(range(40, 80))
    assert without_textures.sites[0].train.tolist() == list(range(20))


def test_cross_dataset_trains_on_one_and_measures_each_among_its_own_classes(pair: Examples) -> None:
    fold = _fold(pair, protocol="cross-dataset", sites=4, train="textures")
    scopes = {scope.name: scope.classes for scope in fold.scopes}
    assert scopes == {"source": tuple(range(8, 13)), "target: pets": tuple(range(8))}
    assert fold.train_classes == scopes["source"]
    for share in fold.sites:
        assert set(pair.labels[share.train]) <= set(scopes["source"])
        assert set(pair.labels[share.tests["target: pets"]]) == set(range(8))


def test_multi_dataset_gives_a_site_classes_of_one_data_set_in_label_order(pair: Examples) -> None:
    fold = _fold(pair, protocol="multi-dataset", sites=3)
    assert [share.classes for share in fold.sites] == [(0, 1), (2, 3), (8, 9, 10)]
    assert fold.train_classes == (0, 1, 2, 3, 8, 9, 10)
    scopes = {scope.name: scope for scope in fold.scopes}
    assert scopes["base: pets"].classes == (0, 1, 2, 3)
    assert scopes["novel: pets"].classes == (4, 5, 6, 7)
    assert scopes["novel: textures"].classes == (11, 12)
    second = fold.sites[1]
    assert fold.candidates(scopes["local: pets"], second) == (2, 3)
    assert fold.candidates(scopes["local: textures"], second) == ()
    assert set(pair.labels[second.train]) == set(pair.labels[second.tests["local: pets"]]) == {2, 3}
    assert not len(second.tests["local: textures"])


def test_a_number_of_classes_per_site_decides_the_number_of_sites(pair: Examples) -> None:
    chosen = {"protocol": "multi-dataset", "classes_per_site": 2, "seen": "all"}
    fold = _fold(pair, **chosen, sites=6)
    assert [share.classes for share in fold.sites] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11, 12)]
    with pytest.raises(UserError, match="are 6 for these data sets, not 3; give --sites 6"):
        _fold(pair, **chosen, sites=3)


def test_nobody_trains_on_an_unseen_data_set(pair: Examples) -> None:
    fold = _fold(pair, protocol="multi-dataset", sites=2, unseen="textures")
    assert {scope.name for scope in fold.scopes} == {"local: pets", "base: pets", "novel: pets", "unseen: textures"}
    assert max(fold.train_classes) < 8
    assert all(pair.labels[share.train].max() < 8 for share in fold.sites)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"protocol": "cross-dataset", "train": "petz"}, "Did you mean 'pets'"),
        ({"protocol": "multi-dataset", "unseen": "textures, petz"}, "Did you mean 'pets'"),
        ({"protocol": "multi-dataset", "unseen": "pets,textures"}, "leave one to train on"),
        ({"protocol": "multi-dataset", "sites": 1}, "1 sites cannot cover 2 data sets"),
        ({"protocol": "multi-dataset", "sites": 7}, "fewer than two classes"),
    ],
)
def test_what_cannot_be_dealt_is_refused(chosen: dict[str, Any], said: str, pair: Examples) -> None:
    with pytest.raises(UserError, match=said):
        _fold(pair, **{"sites": 4, **chosen})


def test_a_single_data_set_is_refused_with_how_several_are_written(examples_of: Any) -> None:
    with pytest.raises(UserError, match=r"several:digits\+characters"):
        _fold(examples_of(), protocol="cross-dataset", sites=2)


# --- several: -------------------------------------------------------------------------------------


def test_several_sources_are_opened_as_each_is_alone(images: Any, write_image: Any, tmp_path: Any) -> None:
    for domain in ("day", "night"):
        for name in ("cat", "dog"):
            write_image(tmp_path / "pets" / domain / name / "0.png", (len(domain), ord(name[0]), 0))
    joined = open_source(f"several:folder:{images}+folder:{tmp_path}/pets(domains=true)", 0)
    assert [each.name for each in joined.data_sets] == [images.name, "pets"]
    assert joined.domain_names == (images.name, "pets/day", "pets/night")
    assert joined.class_names[-2:] == ("cat", "dog")
    assert len(joined) == 36 + 4
    assert joined.load(39).size == (8, 6)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("several:digits", "at least two data sources"),
        ("several:digits+", "at least two data sources"),
        ("several:digits+nonsense", "no data source 'nonsense'"),
        ("several:digits+digits", "need different names"),
        ("several", "needs an argument: several:SOURCES"),
    ],
)
def test_a_mistaken_list_of_sources_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_source(spec, 0)
