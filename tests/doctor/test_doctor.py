"""What would fail later is named now, with what to do about it; what is merely absent does no harm."""

import json
import socket
from importlib.metadata import Distribution, distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedgraft.doctor import examination, machine, versions
from fedgraft.doctor.finding import Finding
from tests.cli.conftest import Printed, printed

__all__ = ["printed"]


def _required(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(versions, "requires", lambda name: list(lines))


def test_a_version_outside_what_is_required_fails_with_the_command_that_repairs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _required(monkeypatch, "numpy<1", "no-such-package>=2", "pillow>=10")
    old, absent, fine = versions.packages()
    assert (old.state, absent.state, fine.state) == ("fails", "fails", "fine")
    assert old.fix == 'pip install "numpy<1"'
    assert absent.text == "no-such-package is not installed"
    assert absent.fix == 'pip install "no-such-package>=2"'


def test_a_version_that_was_not_tested_is_only_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "tested_versions", lambda: {"pillow": versions.Version("1.0")})
    _required(monkeypatch, "pillow>=1")
    (finding,) = versions.packages()
    assert finding.state == "note"
    assert "tested with 1.0" in finding.text


def test_an_older_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.10.13")
    (finding,) = versions.python()
    assert finding.state == "fails"
    assert "3.11" in finding.fix


def test_a_missing_extra_is_noted_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _required(monkeypatch, "pillow", 'no-such-package>=2; extra == "photo"', 'rich; extra == "timm"')
    found = {finding.name: finding for finding in versions.extras()}
    assert found["photo"].state == "note"
    assert found["photo"].fix == 'pip install "fedgraft[photo]"'
    assert found["timm"].state == "fine"
    assert "dev" not in found


def test_every_requirement_that_the_tests_run_with_is_in_the_tested_set() -> None:
    """Large optional ones are not among them, such as the runtimes and trackers whose tests skip without them."""
    tested = versions.tested_versions()
    for requirement in map(Requirement, requires("fedgraft") or []):
        name = canonicalize_name(requirement.name)
        optional = "extra" in str(requirement.marker)
        if name == "fedgraft" or (optional and _distribution(name) is None):
            continue
        assert requirement.specifier.contains(tested[name]), requirement


def _distribution(name: str) -> Distribution | None:
    return next(iter(distributions(name=name)), None)


def test_a_library_that_cannot_be_imported_fails_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_build.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(examination, "_installed", lambda name: True)
    beside, own = examination.imports(("json",), ("broken_build",))
    assert (beside.state, own.state) == ("fails", "fine")
    assert beside.text.endswith("operator torchvision::nms does not exist")
    assert "uninstall" in beside.fix


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = machine.disk({"cache": tmp_path / "file" / "below"})
    assert finding.state == "fails"
    assert "FEDGRAFT_CACHE" in finding.fix


def test_a_full_disk_fails_and_a_nearly_full_one_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((10**6, "fails"), (10**9, "note"), (10**12, "fine")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: type("", (), {"free": free}))
        (finding,) = machine.disk({"current folder": tmp_path})
        assert finding.state == state


def test_a_taken_port_is_noted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (finding,) = machine.ports({"fedgraft server": taken.getsockname()[1]})
    assert finding.state == "note"
    assert "--port" in finding.fix


def test_a_kernel_without_landlock_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgraft.flower.confinement.landlock_version", lambda: 0)
    found = {finding.name: finding for finding in machine.deployment()}
    assert found["Landlock"].state == "note"


@pytest.mark.parametrize(("state", "status"), [("fine", 0), ("note", 0), ("fails", 1)])
def test_the_exit_code_says_whether_something_will_fail(
    state: str, status: int, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("packages", "numpy", state, "text [with brackets]", "a repair")]  # type: ignore[arg-type]
    monkeypatch.setattr(examination, "examine", lambda: found)
    answer = json.loads(printed("doctor", "--json", status=status)[0])
    assert answer["ok"] == (status == 0)
    assert answer["findings"][0] == {
        "area": "packages", "name": "numpy", "state": state, "text": "text [with brackets]", "fix": "a repair"
    }  # fmt: skip
    assert "text [with brackets]" in printed("doctor", status=status)[0] or state == "fine"


@pytest.mark.slow  # it imports all that fedgraft runs on
def test_all_checks_run_on_this_machine() -> None:
    found = examination.examine()
    assert {"Python", "packages", "imports", "doors", "disk", "ports", "deployment"} <= {each.area for each in found}
    assert all(finding.fix for finding in found if finding.state != "fine")
