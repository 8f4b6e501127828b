"""A package that adds something is found by its entry point; one that adds it wrongly is named in one line."""

import pytest

from fedgraft.config.options import Options
from fedgraft.config.registry import METHODS, Registry
from fedgraft.core.errors import UserError
from fedgraft.data.sources.source import Source
from tests.config.conftest import Install

SOURCE_MODULE = """
from fedgraft.data.sources.digits import open_examples
from fedgraft.data.sources.source import Source
SOURCE = Source({name!r}, "digits under another name", open_examples)
"""


def _sources() -> "Registry[Source]":
    """The door as a process sees it that starts now."""
    return Registry("sources", "data source", "fedgraft.data.sources.source:Source")


def _refused(name: str) -> str:
    with pytest.raises(UserError) as error:
        _sources().load(name)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_what_another_package_registers_stands_beside_fedgrafts_own_and_loads(install: Install) -> None:
    install(
        "more-digits", "fedgraft.sources", "mine = mine_digits:SOURCE", mine_digits=SOURCE_MODULE.format(name="mine")
    )
    registry = _sources()
    assert registry.names() == ("characters", "coop", "csv", "digits", "folder", "hf", "mine", "several", "shapes")
    assert registry.load("mine").summary == "digits under another name"
    assert registry.check("mine") == "mine"
    assert [source.name for source in registry] == list(registry.names())
    assert registry.faults() == []


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import absent_dependency", "cannot be imported: No module named 'absent_dependency'."),
        ("OTHER = 3", "has no attribute 'SOURCE'."),
        ("def broken(:", "which cannot be imported: "),
        ("raise TypeError('made for an older fedgraft\\nand its Source')", "imported: made for an older fedgraft."),
    ],
    ids=["dependency", "attribute", "syntax", "error"],
)
def test_an_entry_that_cannot_be_imported_is_one_line_with_its_package(
    module: str, said: str, install: Install, request: pytest.FixtureRequest
) -> None:
    name = f"broken_{request.node.callspec.id}"
    install("a-broken-package", "fedgraft.sources", f"mine = {name}:SOURCE", **{name: module})
    sentence = _refused("mine")
    assert sentence.startswith("The data source 'mine' of the package 'a-broken-package' is registered as")
    assert said in sentence


def test_an_entry_whose_module_is_not_there_is_one_line_with_its_package(install: Install) -> None:
    install("a-broken-package", "fedgraft.sources", "mine = no_such_module_at_all:SOURCE")
    assert "'a-broken-package'" in (sentence := _refused("mine"))
    assert "no_such_module_at_all" in sentence


def test_an_entry_of_the_wrong_type_is_one_line_with_what_is_expected(install: Install) -> None:
    install("a-broken-package", "fedgraft.sources", "mine = fedgraft.methods.promptfl:METHOD")
    assert _refused("mine") == (
        "The data source 'mine' of the package 'a-broken-package' is a Method, but fedgraft.sources takes a Source."
    )


def test_an_entry_that_calls_itself_another_name_is_one_line_with_both(install: Install) -> None:
    install("a-package", "fedgraft.sources", "mine = renamed:SOURCE", renamed=SOURCE_MODULE.format(name="yours"))
    sentence = _refused("mine")
    assert sentence.startswith("The data source 'mine' of the package 'a-package' calls itself 'yours'")


def test_a_name_of_two_packages_is_one_line_with_both_of_them(install: Install) -> None:
    """Neither may win in silence: a run would depend on the order of installation."""
    for package in ("one-package", "other-package"):
        install(package, "fedgraft.sources", f"mine = {package[:3]}:SOURCE")
    sentence = _refused("mine")
    assert "'one-package'" in sentence
    assert "'other-package'" in sentence
    assert "uninstall one" in sentence


def test_a_name_of_fedgrafts_own_is_not_taken_over_in_silence(install: Install) -> None:
    install("a-package", "fedgraft.sources", "digits = taken:SOURCE", taken=SOURCE_MODULE.format(name="digits"))
    assert "'a-package' and 'fedgraft'" in _refused("digits") or "'fedgraft' and 'a-package'" in _refused("digits")


def test_one_broken_entry_hides_no_other(install: Install) -> None:
    install("a-broken-package", "fedgraft.sources", "mine = no_such_module_at_all:SOURCE")
    registry = _sources()
    own = ["characters", "coop", "csv", "digits", "folder", "hf", "several", "shapes"]
    assert [source.name for source in registry] == own
    (fault,) = registry.faults()
    assert "'a-broken-package'" in fault


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"There is no method 'fedpggp'. Did you mean 'fedpgp'\?"):
        METHODS.load("fedpggp")


def test_options_of_an_entry_are_checked_by_what_it_is() -> None:
    source = Source("mine", "nothing", lambda options, seed: None)  # type: ignore[arg-type, return-value]
    assert source.parse_options({}) == Options()
    with pytest.raises(UserError, match="The data source 'mine' has no options, so there is no option 'size'"):
        source.parse_options({"size": 3})
