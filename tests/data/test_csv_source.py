"""What a user with a table of images would lose: every spelling of a table read right, and mistakes with their line."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedgraft.core.errors import UserError
from fedgraft.data.examples import SPLIT_NAMES, Examples
from fedgraft.data.sources.source import open_source


@pytest.fixture
def table(tmp_path: Path, write_image: Any) -> Path:
    """A folder with four images, for tables beside them."""
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", colour=(number, 0, 0))
    return tmp_path / "photos.csv"


def _open(table: Path, content: str | bytes, **values: Any) -> Examples:
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(f"csv:{table}", 0, values)


def _error(table: Path, content: str | bytes, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        _open(table, content, **values)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_every_column_is_read(table: Path) -> None:
    examples = _open(
        table,
        "path,label,domain,split,site\n"
        "images/0.png,desk_lamp,web,train,b\nimages/1.png,mug,photo,validation,a\n"
        "images/2.png,mug,web,TEST,a\nimages/3.png,desk_lamp,photo,train,c\n",
    )
    assert examples.class_names == ("desk lamp", "mug")
    assert examples.labels.tolist() == [0, 1, 1, 0]
    assert examples.domain_names == ("photo", "web")
    assert examples.domains.tolist() == [1, 0, 1, 0]
    assert examples.splits is not None
    assert [SPLIT_NAMES[value] for value in examples.splits] == ["train", "val", "test", "train"]
    assert examples.site_names == ("a", "b", "c")
    assert examples.sites is not None
    assert examples.sites.tolist() == [1, 0, 0, 2]


ROWS = "path,label\nimages/0.png,mug\nimages/1.png,lamp\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        "\ufeff" + ROWS,
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("\n", "\r"),
        ROWS.replace(",", ";"),
        ROWS.replace(",", "\t"),
        ROWS.rstrip("\n"),
        ROWS.replace("\n", "\n\n"),
        'label,path\n"mug","images/0.png"\n"lamp","images/1.png"\n',
        "Path, Label\n images/0.png , mug\nimages/1.png,lamp\n",
    ],
    ids=["plain", "bom", "crlf", "cr", "semicolons", "tabs", "no end", "blank lines", "quoted", "spaces"],
)
def test_a_table_is_read_however_it_was_saved(content: str, table: Path) -> None:
    examples = _open(table, content)
    assert examples.class_names == ("lamp", "mug")
    assert examples.labels.tolist() == [1, 0]
    assert [examples.load(index).getpixel((0, 0)) for index in (0, 1)] == [(0, 0, 0), (1, 0, 0)]
    assert examples.splits is None
    assert examples.sites is None
    assert examples.domain_names == ("all",)


def test_labels_that_are_numbers_have_the_order_of_numbers(table: Path) -> None:
    examples = _open(table, "path,label\nimages/0.png,10\nimages/1.png,9\nimages/2.png,2\n")
    assert examples.class_names == ("2", "9", "10")


def test_a_strange_label_is_read_as_it_is(table: Path) -> None:
    names = ['{0} "q", x', "Чашка", "colt's foot", "x" * 300]
    cells = [f'images/{number}.png,"{name.replace(chr(34), chr(34) * 2)}"' for number, name in enumerate(names)]
    examples = _open(table, "path,label\n" + "\n".join(cells))
    assert [examples.class_names[label] for label in examples.labels] == names


def test_an_absolute_path_inside_the_folder_is_read(table: Path) -> None:
    content = f"path,label\n{table.parent / 'images' / '0.png'},mug\nimages/1.png,lamp\n"
    assert _open(table, content).labels.tolist() == [1, 0]


def test_a_line_that_is_repeated_counts_once_and_is_told(table: Path) -> None:
    examples = _open(table, ROWS + "images/0.png,mug\n./images/0.png,mug\n")
    assert len(examples) == 2
    assert examples.skipped == ("2 images are listed more than once",)


def test_an_image_in_two_splits_is_kept_in_both(table: Path) -> None:
    """Which of them counts is for the split to decide: it does not train."""
    examples = _open(
        table, "path,label,split\nimages/0.png,mug,train\nimages/0.png,mug,test\nimages/1.png,lamp,train\n"
    )
    assert len(examples) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "without 'path' and 'label'"),
        ("images/0.png,mug\n", "must name the columns: path,label[,domain][,split][,site]"),
        ("path,label\n", "has no images"),
        ("path,label,splt\n", "Did you mean 'split'?"),
        ("path,label,label\n", "names a column twice"),
        ("path,label\nimages/0.png,mug,web\n", "Line 2 of {table} has 3 cells"),
        ("path,label\nimages/0.png,mug\nimages/1.png\n", "Line 3 of {table} has 1 cells"),
        ("path,label\nimages/0.png,\n", "Line 2 of {table} has no label"),
        ("path,label\n,mug\n", "Line 2 of {table} has no path"),
        ("path,label,split\nimages/0.png,mug,trian\n", "the split 'trian'"),
        ("path,label,split\nimages/0.png,mug,train\nimages/1.png,mug,\n", "1 of the 2 images of {table} have no split"),
        ("path,label\n/etc/0.png,mug\n", "Line 2 of {table} names the image '/etc/0.png', which is outside the folder"),
        ("path,label\n../0.png,mug\n", "which is outside the folder"),
        ("path,label\nimages/0.png,mug\nimages/0.png,lamp\n", "0.png has two labels, 'mug' and 'lamp'"),
        ("path,label\nimages/9.png,mug\nimages/0.png,lamp\n", "9.png does not exist"),
        ('path,label\n"images/0.png,mug\n', "is malformed"),
        ("path,label\nimages/0.png,mug\nimages/1.png,mug\n", "only one class"),
        ("path,label\nimages/0.png,desk_lamp\nimages/1.png,desk lamp\n", "'desk lamp'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(content: str, said: str, table: Path) -> None:
    assert said.format(table=table) in _error(table, content)


def test_a_table_in_another_encoding_is_told(table: Path) -> None:
    assert "not UTF-8" in _error(table, "path,label\nimages/0.png,Stra\u00dfe\n".encode("latin-1"))


def test_a_table_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read: No such file"):
        open_source(f"csv:{tmp_path / 'nowhere.csv'}", 0)


@pytest.mark.slow
def test_ten_thousand_classes_are_read(table: Path) -> None:
    for number in range(10_000):
        os.link(table.parent / "images" / "0.png", table.parent / f"{number}.png")
    examples = _open(table, "path,label\n" + "".join(f"{number}.png,class_{number:04d}\n" for number in range(10_000)))
    assert examples.class_names[::1111] == tuple(f"class {number:04d}" for number in range(0, 10_000, 1111))
