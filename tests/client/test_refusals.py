"""What a refusal tells the server, and what stays in the log of the site."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fedgraft.client import tasks
from fedgraft.core.refusals import SENTENCES
from fedgraft.flower.messages import (
    JOB,
    Job,
)
from fedgraft.runs.site_folder import SiteFolder
from tests.client.conftest import Ask, AskSite, Content, entries_of, refusal_of


def _with_corrupt_image(site: SiteFolder) -> None:
    (Path(site.settings.data) / "blue_circle" / "Doe_Jane_1961.png").write_bytes(b"no image")


def _with_foreign_class(site: SiteFolder) -> None:
    folder = Path(site.settings.data)
    (folder / "Ward_7_Doe").mkdir()
    shutil.copy(folder / "blue_circle" / "0.png", folder / "Ward_7_Doe" / "0.png")


def _without_images(site: SiteFolder) -> None:
    shutil.rmtree(site.settings.data)


def _with_damaged_state(site: SiteFolder) -> None:
    folder = site.state / "run" / "000"
    folder.mkdir(parents=True)
    (folder / "round-000000.safetensors").write_bytes(b"damaged")


def _with_a_file_in_the_caches_place(site: SiteFolder) -> None:
    site.cache.rmdir()
    site.cache.write_text("")


@pytest.mark.parametrize(
    ("spoil", "code", "logged"),
    [
        (_with_corrupt_image, "images", "Doe_Jane_1961.png"),
        (_with_foreign_class, "classes", "Ward_7_Doe"),
        (_without_images, "images", "does not exist"),
        (_with_damaged_state, "state", "round-000000.safetensors"),
        (_with_a_file_in_the_caches_place, "disk", "cache"),
    ],
)
def test_a_refusal_tells_a_code_and_its_sentence_and_the_log_has_the_rest(
    spoil: Callable[[SiteFolder], None], code: str, logged: str, ask: Ask, job: Job, content: Content,
    site: SiteFolder, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    spoil(site)
    assert refusal_of(ask, "train", content(job)) == f"{SENTENCES[code]} ({code})"
    assert logged in caplog.text


def test_an_unexpected_error_tells_nothing_of_itself(
    ask: Ask, job: Job, content: Content, site: SiteFolder, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def broken(*arguments: object) -> None:
        raise RuntimeError("/data/patients/Doe_Jane_1961.png")

    monkeypatch.setattr(tasks, "train_sites", broken)
    assert refusal_of(ask, "train", content(job)) == "an unexpected error at the site (internal)"
    assert "Doe_Jane_1961" in caplog.text
    assert "Doe_Jane_1961" in entries_of(site, "declined")[0]["detail"]


def test_a_site_whose_folder_names_no_images_refuses_without_naming_its_folder(
    tmp_path: Path, ask_site: AskSite, job: Job
) -> None:
    site = SiteFolder.create(tmp_path / "empty", "north")
    assert refusal_of(ask_site(site), "hello", RecordDict({JOB: job.to_record()})) == f"{SENTENCES['images']} (images)"
