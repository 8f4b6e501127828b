"""What a user with a folder of images would lose: the layout read right, and mistakes in it named."""

import contextlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples
from fedgraft.data.sources.folder import open_site_images
from fedgraft.data.sources.source import open_source

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

OFFICE = Path(__file__).parents[3] / "shared" / "data" / "office_caltech10"


def _open(root: Path, domains: bool = False) -> Examples:
    return open_source(f"folder:{root}", seed=0, values={"domains": domains})


def _error(root: Path, domains: bool = False) -> str:
    with pytest.raises(UserError) as error:
        _open(root, domains)
    return str(error.value)


def test_class_slash_image(tmp_path: Path, write_image: Any) -> None:
    for name in ("mug", "desk_lamp"):
        for index in range(2):
            write_image(tmp_path / name / f"{index}.png")
    examples = _open(tmp_path)
    assert examples.class_names == ("desk lamp", "mug")
    assert examples.domain_names == ("all",)
    assert examples.labels.tolist() == [0, 0, 1, 1]


def test_domain_slash_class_slash_image(tmp_path: Path, write_image: Any) -> None:
    for domain, name in itertools.product(("web", "photo"), ("mug", "lamp")):
        write_image(tmp_path / domain / name / "1.png")
    write_image(tmp_path / "photo" / "chair" / "1.png")
    examples = _open(tmp_path)
    assert examples.class_names == ("chair", "lamp", "mug")
    assert examples.domain_names == ("photo", "web")
    assert examples.domains.tolist() == [0, 0, 0, 1, 1]
    assert examples.labels.tolist() == [0, 1, 2, 1, 2]


def test_domains_can_be_forced_where_the_depth_is_misleading(tmp_path: Path, write_image: Any) -> None:
    """A stray picture beside the class folders makes a domain look like a class."""
    for domain, name in itertools.product(("web", "photo"), ("mug", "lamp")):
        write_image(tmp_path / domain / name / "1.png")
    write_image(tmp_path / "web" / "contact-sheet.png")
    assert "photo" in _error(tmp_path)
    assert _open(tmp_path, domains=True).domain_names == ("photo", "web")


def test_forced_domains_on_a_flat_folder_say_what_was_expected(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "mug" / "1.png")
    assert "domain/class/" in _error(tmp_path, domains=True)


def test_jpeg_png_webp_and_other_modes_load_as_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "mug"
    folder.mkdir()
    colour = Image.new("RGB", (8, 6), (200, 40, 40))
    for name in ("1.jpg", "2.JPEG", "3.png", "4.webp"):
        colour.save(folder / name)
    colour.convert("RGBA").save(folder / "5.png")
    colour.quantize(4).save(folder / "6.png")
    colour.convert("CMYK").save(folder / "7.jpg")
    (folder / "notes.txt").write_text("not an image")
    (tmp_path / "lamp").mkdir()
    colour.convert("L").save(tmp_path / "lamp" / "1.png")
    examples = _open(tmp_path)
    assert np.bincount(examples.labels).tolist() == [1, 7]
    for index in np.flatnonzero(examples.labels == 1):
        image = examples.load(int(index))
        assert image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(image)[3, 3], (200, 40, 40), atol=12)
    assert examples.load(0).mode == "RGB"


def test_exif_orientation_is_honoured(tmp_path: Path, write_image: Any) -> None:
    """Otherwise half of a phone's photos would be classified lying on their side."""
    write_image(tmp_path / "lamp" / "1.png")
    (tmp_path / "mug").mkdir()
    upright = Image.new("RGB", (30, 20))
    upright.paste((255, 255, 255), (0, 0, 30, 10))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "mug" / "1.jpg", exif=exif, quality=95)
    shown = np.asarray(_open(tmp_path).load(1).convert("L"))
    assert shown.shape == (20, 30)
    assert shown[:8].mean() > 240
    assert shown[12:].mean() < 15


def test_16_bit_scans_are_not_turned_white(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "lamp" / "1.png")
    (tmp_path / "scan").mkdir()
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(tmp_path / "scan" / "1.png")
    assert np.asarray(_open(tmp_path).load(1)).tolist() == np.full((8, 8, 3), 0x40).tolist()


def test_no_such_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "photos") in _error(tmp_path / "photos")


def test_a_folder_without_class_folders_is_named_with_the_layout(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "1.png")
    sentence = _error(tmp_path)
    assert str(tmp_path) in sentence
    assert "class/image" in sentence


@pytest.mark.parametrize("below", ["", "photo"])
def test_an_empty_class_is_named(tmp_path: Path, write_image: Any, below: str) -> None:
    for name in ("mug", "lamp"):
        write_image(tmp_path / below / name / "1.png")
    (tmp_path / below / "chair").mkdir()
    assert str(tmp_path / below / "chair") in _error(tmp_path)


def test_one_class_only_is_refused(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "mug" / "1.png")
    sentence = _error(tmp_path)
    assert "one class" in sentence
    assert "mug" in sentence


def test_two_folders_of_one_readable_name_are_both_named(tmp_path: Path, write_image: Any) -> None:
    for name in ("desk_lamp", "desk lamp", "mug"):
        write_image(tmp_path / name / "1.png")
    sentence = _error(tmp_path)
    assert "desk_lamp" in sentence
    assert "desk lamp" in sentence


def test_a_truncated_jpeg_is_named_when_it_is_loaded(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "lamp" / "1.png")
    broken = write_image(tmp_path / "mug" / "1.jpg", size=(64, 64))
    broken.write_bytes(broken.read_bytes()[:-200])
    examples = _open(tmp_path)
    assert examples.load(0).size == (8, 6)
    with pytest.raises(UserError) as error:
        examples.load(1)
    assert str(broken) in str(error.value)


@UNTIMED
@given(kind=st.sampled_from(["jpeg", "png", "webp"]), data=st.data())
def test_a_damaged_file_is_decoded_or_refused_but_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    del content[data.draw(st.integers(0, len(content)), label="length") :]
    for place in data.draw(st.lists(st.integers(0, 10**6), max_size=3), label="damaged"):
        if content:
            content[place % len(content)] ^= 0x5A
    root = tmp_path_factory.mktemp("damaged")
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / f"1.{kind}").write_bytes(content)
    examples = _open(root)
    with contextlib.suppress(UserError):
        assert examples.load(1).mode == "RGB"


@UNTIMED
@given(order=st.permutations(range(6)))
def test_labels_and_keys_do_not_depend_on_the_order_of_creation(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    """Neither the file system nor the copying tool may decide which classes are base."""
    root = tmp_path_factory.mktemp("ordered")
    names = ("a1", "aB", "a_c")
    for number in order:
        path = root / names[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
    examples = _open(root)
    assert examples.class_names == ("a c", "a1", "aB")
    assert [int(np.asarray(examples.load(index))[0, 0, 0]) for index in range(6)] == [0, 3, 1, 4, 2, 5]
    assert examples.labels.tolist() == [1, 1, 2, 2, 0, 0]


def test_a_key_follows_the_content_and_not_the_name(tmp_path: Path, write_image: Any) -> None:
    first = write_image(tmp_path / "mug" / "1.png")
    write_image(tmp_path / "lamp" / "other.png")
    keys = _open(tmp_path).keys
    np.testing.assert_array_equal(keys[0], keys[1])
    write_image(first, colour=(1, 2, 3))
    assert (_open(tmp_path).keys[1] != keys[1]).any()


def test_a_class_that_the_federation_does_not_know_is_named(images: Path) -> None:
    known = ["azure disk", "green square", "red triangle"]
    with pytest.raises(UserError, match="the class 'blue_circle', which the federation does not know"):
        open_site_images(images, known, {})
    renamed = open_site_images(images, known, {"blue_circle": "azure disk"})
    assert renamed.class_names == tuple(known)
    assert sorted(set(renamed.labels.tolist())) == [0, 1, 2]


@pytest.mark.skipif(not OFFICE.is_dir(), reason="Office-Caltech10 is not beside the repository")
def test_office_caltech10_is_read_as_it_is() -> None:
    examples = _open(OFFICE)
    assert examples.domain_names == ("Caltech", "amazon", "dslr", "webcam")
    assert len(examples.class_names) == 10
    assert len(examples) == 2533
    assert all(examples.load(index).mode == "RGB" for index in range(0, 2533, 500))
