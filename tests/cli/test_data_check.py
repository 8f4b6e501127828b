"""What a user would lose who looks before training: how a source is read, and exit code 2 where it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Printed


@pytest.fixture
def checked(printed: Printed) -> Printed:
    """What `fedgraft data check` prints, and what it says of a mistake."""
    return lambda *words, status=0: printed("data", "check", *words, status=status)


@pytest.fixture
def photos(tmp_path: Path, write_image: Any) -> Path:
    """Two classes with splits, a copy across them, a content with two labels, and a file that is no image."""
    for number in range(3):
        write_image(tmp_path / "train" / "mug" / f"{number}.png", colour=(number, 0, 0))
    write_image(tmp_path / "train" / "lamp [bold]" / "1.png", colour=(50, 0, 0))
    write_image(tmp_path / "test" / "mug" / "copy.png", colour=(2, 0, 0))
    write_image(tmp_path / "test" / "lamp [bold]" / "2.png", colour=(1, 0, 0))
    (tmp_path / "test" / "notes.txt").write_text("x")
    return tmp_path


def test_json_says_how_the_source_is_read(photos: Path, checked: Printed) -> None:
    found = json.loads(checked(f"folder:{photos}", "--json")[0])
    assert found == {
        "data": f"folder:{photos}", "images": 6, "classes": ["lamp [bold]", "mug"], "counts": [2, 4],
        "splits": {"train": 4, "test": 2}, "domains": {}, "sites": {}, "templates": ["a photo of a {}."],
        "prompts": ["a photo of a lamp [bold].", "a photo of a mug."], "smallest": "lamp [bold]", "duplicates": 2,
        "overlap": 2, "conflicting": 1, "skipped": ["1 file is no image: test/notes.txt"], "unreadable": [],
    }  # fmt: skip


def test_domains_and_writers_are_counted(tmp_path: Path, write_image: Any, checked: Printed) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", colour=(number, 0, 0))
    rows = ["0.png,mug,web,b", "1.png,mug,web,a", "2.png,lamp,photo,b", "3.png,lamp,web,b"]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label,domain,site", *rows]))
    found = json.loads(checked(f"csv:{tmp_path / 'photos.csv'}", "--json")[0])
    assert (found["domains"], found["sites"]) == ({"photo": 1, "web": 3}, {"a": 1, "b": 3})
    assert found["splits"] == {}


def test_the_table_has_every_class_and_fact(photos: Path, checked: Printed) -> None:
    told, _ = checked(f"folder:{photos}")
    for fact in (
        "6 images of 2 classes", "lamp [bold]", "smallest class: 'lamp [bold]' with 2 images",
        "splits: train 4, test 2", "domains: none", "sites: none", "copies of another image: 2",
        "and do not train: 2", "more than one label: 1", "left out: 1 file is no image: test/notes.txt",
        "prompt: a photo of a lamp [bold].",
    ):  # fmt: skip
        assert fact in told


def test_images_that_cannot_be_decoded_are_all_named_and_the_command_fails(photos: Path, checked: Printed) -> None:
    broken = [photos / "train" / "mug" / "0.png", photos / "test" / "lamp [bold]" / "2.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    printed, said = checked(f"folder:{photos}", "--json", status=2)
    found = json.loads(printed)
    assert len(found["unreadable"]) == 2
    assert all(any(str(path) in line for line in found["unreadable"]) for path in broken)
    assert said.startswith("fedgraft: 2 of the 6 images of")
    assert said.count("\n") == 1
    assert json.loads(checked(f"folder:{photos}", "--json", "--no-decoding")[0])["unreadable"] == []
    left_out = json.loads(checked(f"folder:{photos}", "--json", "--set", "on_bad_image=skip")[0])
    assert (left_out["images"], left_out["unreadable"]) == (4, [])
    assert all(any(str(path) in line for line in left_out["skipped"]) for path in broken)


def test_a_contact_sheet_has_a_row_for_each_class(photos: Path, checked: Printed, tmp_path: Path) -> None:
    checked(f"folder:{photos}", "--sheet", str(tmp_path / "sheet.png"))
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.height == 2 * (96 + 18 + 4) + 4
    first_images = [sheet.getpixel((50, top + 18 + 48)) for top in (4, 122)]
    assert first_images == [(1, 0, 0), (2, 0, 0)]


def test_a_damaged_image_is_crossed_out_on_the_sheet(photos: Path, checked: Printed, tmp_path: Path) -> None:
    path = photos / "train" / "mug" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    checked(f"folder:{photos}", "--sheet", str(tmp_path / "sheet.png"), status=2)
    assert (255, 0, 0) in Image.open(tmp_path / "sheet.png").convert("RGB").get_flattened_data()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folder:/no/such/folder"], "/no/such/folder"),
        (["foldr:x"], "Did you mean 'folder'?"),
        (["folder:x", "--set", "domain=true"], "Did you mean 'domains'?"),
        (["digits", "--sheet", "/no/such/folder/sheet.png"], "/no/such/folder/sheet.png cannot be written"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(words: list[str], said: str, checked: Printed) -> None:
    _, sentence = checked(*words, status=2)
    assert said in sentence
    assert sentence.count("\n") == 1


def test_a_source_that_comes_with_the_package_can_be_checked(checked: Printed) -> None:
    found = json.loads(checked("digits", "--json")[0])
    assert sum(found["counts"]) == found["images"]
    assert len(found["classes"]) == len(found["counts"]) == 10
