"""What a user with a folder of images would lose: the layout read right, and mistakes in it named."""

import contextlib
import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.data.examples import SPLIT_NAMES, Examples
from fedgraft.data.sources.decoding import SUFFIXES, silence_damage
from fedgraft.data.sources.folder import open_site_images
from fedgraft.data.sources.source import open_source

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

OFFICE = Path(__file__).parents[3] / "shared" / "data" / "office_caltech10"


def _open(root: Path, domains: bool = False, **values: Any) -> Examples:
    return open_source(f"folder:{root}", seed=0, values={"domains": domains, **values})


def _error(root: Path, domains: bool = False, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        _open(root, domains, **values)
    return str(error.value)


def _splits(examples: Examples) -> list[str]:
    assert examples.splits is not None
    return [SPLIT_NAMES[value] for value in examples.splits]


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


def test_every_kind_of_image_is_read_whatever_the_case_of_its_ending(tmp_path: Path, write_image: Any) -> None:
    """A class of TIFF files used to be empty, and one of mixed files smaller than it is."""
    write_image(tmp_path / "lamp" / "1.png")
    (tmp_path / "mug").mkdir()
    colour = Image.new("RGB", (8, 6), (200, 40, 40))
    names = ["1.TIFF", "2.tif", "3.BMP", "4.GIF", "5.JPG", "6.WebP", *(["7.AVIF"] if ".avif" in SUFFIXES else [])]
    for name in names:
        kind = {"tif": "tiff", "jpg": "jpeg"}.get(name[2:].lower(), name[2:].lower())
        colour.save(tmp_path / "mug" / name, kind)
    moving = [colour, Image.new("RGB", (8, 6), (0, 0, 250))]
    moving[0].save(tmp_path / "mug" / "8.gif", save_all=True, append_images=moving[1:])
    examples = _open(tmp_path)
    assert np.bincount(examples.labels).tolist() == [1, len(names) + 1]
    for index in np.flatnonzero(examples.labels == 1):
        np.testing.assert_allclose(np.asarray(examples.load(int(index)))[3, 3], (200, 40, 40), atol=12)


def test_what_is_no_image_is_left_out_counted_and_told(tmp_path: Path, write_image: Any) -> None:
    for name in ("mug", "lamp"):
        write_image(tmp_path / name / "1.png")
        (tmp_path / name / "Thumbs.db").write_bytes(b"x")
        (tmp_path / name / ".DS_Store").write_bytes(b"x")
    (tmp_path / "mug" / "._1.png").write_bytes(b"a resource fork of macOS")
    (tmp_path / "mug" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX" / "mug").mkdir(parents=True)
    write_image(tmp_path / "sheet.png")
    examples = _open(tmp_path)
    assert len(examples) == 2
    assert set(examples.skipped) == {
        "2 files are no images: lamp/Thumbs.db, mug/Thumbs.db",
        "3 hidden files: lamp/.DS_Store, mug/.DS_Store, mug/._1.png",
        "1 image is outside the class folders: sheet.png",
    }


def test_pixels_without_a_known_range_are_refused(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "lamp" / "1.png")
    (tmp_path / "mug").mkdir()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "mug" / "1.tif")
    with pytest.raises(UserError, match="floating-point"):
        _open(tmp_path).load(1)


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
@given(kind=st.sampled_from(["jpeg", "png", "webp", "tiff", "bmp", "gif"]), data=st.data())
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


# --- splits ---------------------------------------------------------------------------------------


LAYOUTS = {
    "{split}/{name}/{number}.png": ("all",), "{name}/{split}/{number}.png": ("all",),
    "{split}/{domain}/{name}/{number}.png": ("photo", "web"), "{domain}/{split}/{name}/{number}.png": ("photo", "web"),
    "{domain}/{name}/{split}/{number}.png": ("photo", "web"), "set_{split}/{name}/{number}.png": ("all",),
}  # fmt: skip


@pytest.mark.parametrize("pattern", LAYOUTS)
@pytest.mark.parametrize("called", [("train", "val", "test"), ("Training", "validation", "TEST")])
def test_train_val_and_test_are_splits_wherever_they_stand(
    pattern: str, called: tuple[str, ...], tmp_path: Path, write_image: Any
) -> None:
    number = itertools.count()
    for split, name, domain in itertools.product(called, ("mug", "train"), ("web", "photo")):
        place = {"split": split, "name": name, "domain": domain, "number": next(number)}
        write_image(tmp_path / pattern.format(**place), colour=(place["number"], 0, 0))
    examples = _open(tmp_path)
    assert examples.class_names == ("mug", "train")
    assert examples.domain_names == LAYOUTS[pattern]
    for index, split in enumerate(_splits(examples)):
        shown = int(np.asarray(examples.load(index))[0, 0, 0])
        assert (split, examples.labels[index]) == (SPLIT_NAMES[shown // 4], shown // 2 % 2)


def test_a_class_that_is_missing_in_one_split_is_read(tmp_path: Path, write_image: Any) -> None:
    for place in ("train/lamp", "train/mug", "test/mug"):
        write_image(tmp_path / place / "1.png")
    (tmp_path / "test" / "lamp").mkdir()
    examples = _open(tmp_path)
    assert examples.class_names == ("lamp", "mug")
    assert _splits(examples) == ["test", "train", "train"]


def test_train_alone_leaves_testing_to_a_fraction(tmp_path: Path, write_image: Any) -> None:
    for name in ("lamp", "mug"):
        write_image(tmp_path / "train" / name / "1.png")
    examples = _open(tmp_path)
    assert examples.class_names == ("lamp", "mug")
    assert examples.splits is None


@pytest.mark.parametrize(
    "folders",
    [
        ("cars_train", "cars_test"), ("train", "test"), ("cars_train/cars_train", "cars_test/cars_test"),
        ("train/test", "test/test"),
    ],
)  # fmt: skip
def test_splits_without_class_folders_are_a_question(
    folders: tuple[str, ...], tmp_path: Path, write_image: Any
) -> None:
    """Stanford Cars used to be read as two classes, cars_train and cars_test."""
    for folder in folders:
        write_image(tmp_path / folder / "1.png")
    (tmp_path / "devkit").mkdir()
    (tmp_path / "devkit" / "cars_meta.mat").write_bytes(b"x")
    sentence = _error(tmp_path)
    assert "csv:FILE" in sentence
    assert "coop:PATH" in sentence
    assert "splits=false" in sentence


def test_folders_named_as_splits_can_be_classes(tmp_path: Path, write_image: Any) -> None:
    for folder in ("crash_train", "crash_test"):
        write_image(tmp_path / folder / "1.png")
    assert _open(tmp_path, splits=False).class_names == ("crash test", "crash train")


def test_classes_that_end_like_splits_are_classes(tmp_path: Path, write_image: Any) -> None:
    for folder in ("bullet_train", "blood_test", "mug"):
        write_image(tmp_path / folder / "1.png")
    assert _open(tmp_path).class_names == ("blood test", "bullet train", "mug")


def test_images_that_are_too_deep_are_told_what_was_expected(tmp_path: Path, write_image: Any) -> None:
    for name in ("mug", "lamp"):
        write_image(tmp_path / "a" / "b" / name / "1.png")
    assert "3 levels of folders" in _error(tmp_path)


def test_a_split_file_that_is_not_read_is_pointed_out(tmp_path: Path, write_image: Any) -> None:
    for name in ("mug", "lamp"):
        write_image(tmp_path / "images" / name / "1.png")
    (tmp_path / "split_zhou_DescribableTextures.json").write_text("{}")
    assert any(f"coop:{tmp_path}" in line for line in _open(tmp_path / "images").skipped)


# --- DomainNet's lists ----------------------------------------------------------------------------


def _domainnet(root: Path, write_image: Any, lists: str = "splits") -> Path:
    """Labels that are not in the order of the names, as in DomainNet's lists; one class is missing in one list."""
    (root / lists).mkdir(parents=True)
    labels = {"The_Eiffel_Tower": 0, "aircraft_carrier": 1, "zebra": 2}
    for domain, split in itertools.product(("clipart", "real"), ("train", "test")):
        lines = []
        for name, label in labels.items():
            if (domain, split, name) != ("clipart", "train", "zebra"):
                path = f"{domain}/{name}/{split} {label}.jpg"
                write_image(root / path, colour=(label * 20, len(domain), len(split)))
                lines.append(f"{path} {label}")
        (root / lists / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_domainnets_lists_are_splits_with_the_order_of_its_labels(tmp_path: Path, write_image: Any) -> None:
    examples = _open(_domainnet(tmp_path, write_image))
    assert examples.class_names == ("The Eiffel Tower", "aircraft carrier", "zebra")
    assert examples.domain_names == ("clipart", "real")
    assert examples.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2]
    assert examples.domains.tolist() == [0] * 5 + [1] * 6
    assert _splits(examples) == ["test"] * 3 + ["train"] * 2 + ["test"] * 3 + ["train"] * 3


def test_another_folder_of_lists_can_be_chosen_and_lists_can_be_ignored(tmp_path: Path, write_image: Any) -> None:
    root = _domainnet(tmp_path, write_image, "splits_mini")
    assert _open(root).splits is None
    assert _open(root, lists="splits_mini").splits is not None
    assert _open(root, lists="splits_mini", splits=False).splits is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clipart/zebra/1.jpg two", "expected the path of an image"),
        ("clipart/lion/1.jpg 2", "gives the label 2 to 'lion', but elsewhere it is 'zebra'"),
        ("../../zebra/1.jpg 2", "outside the folder"),
        ("clipart/zebra/gone.jpg 2", "gone.jpg does not exist"),
    ],
)
def test_a_mistake_in_a_list_is_named(line: str, said: str, tmp_path: Path, write_image: Any) -> None:
    root = _domainnet(tmp_path, write_image)
    with (root / "splits" / "real_train.txt").open("a") as file:
        file.write(line + "\n")
    assert said in _error(root)


@pytest.mark.parametrize("images", [".", "images"])
def test_pacs_own_lists_are_splits_with_labels_from_one(images: str, tmp_path: Path, write_image: Any) -> None:
    """As Dassl reads them: `crossval` is for validation, `test` is the whole domain again, one image is faulty."""
    (tmp_path / "splits").mkdir()
    for domain in ("art_painting", "sketch"):
        lists = {"train": [f"{domain}/dog/1.png 1", f"{domain}/horse/1.png 2"], "crossval": [f"{domain}/dog/2.png 1"]}
        for line in [*lists["train"], *lists["crossval"]]:
            write_image(tmp_path / images / line.split()[0], colour=(len(line), len(domain), 0))
        if domain == "sketch":
            lists["train"].append("sketch/dog/n02103406_4068-1.png 1")
        lists["test"] = [*lists["train"], *lists["crossval"]]
        for split, lines in lists.items():
            (tmp_path / "splits" / f"{domain}_{split}_kfold.txt").write_text("\n".join(lines) + "\n")
    examples = _open(tmp_path)
    assert examples.class_names == ("dog", "horse")
    assert examples.domain_names == ("art_painting", "sketch")
    assert examples.labels.tolist() == [0, 0, 1, 0, 0, 1]
    assert _splits(examples) == ["val", "train", "train"] * 2
    assert examples.skipped == ("1 image of PACS is faulty: sketch/dog/n02103406_4068-1.png",)


# --- images that cannot be read -------------------------------------------------------------------


def _damaged(root: Path, write_image: Any) -> tuple[Path, Path]:
    for name in ("lamp", "mug"):
        for number in range(3):
            write_image(root / name / f"{number}.jpg", colour=(number * 30, 0, len(name)), size=(64, 64))
    broken, dangling = root / "mug" / "1.jpg", root / "mug" / "9.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    dangling.symlink_to(root / "gone.jpg")
    return broken, dangling


def test_a_dangling_link_is_one_sentence(tmp_path: Path, write_image: Any) -> None:
    _, dangling = _damaged(tmp_path, write_image)
    sentence = _error(tmp_path)
    assert "1 of the 7 images" in sentence
    assert f"{dangling} links to {tmp_path / 'gone.jpg'}, which does not exist" in sentence
    assert "on_bad_image=skip" in sentence


def test_images_that_cannot_be_read_are_left_out_on_request_by_name(tmp_path: Path, write_image: Any) -> None:
    broken, dangling = _damaged(tmp_path, write_image)
    examples = _open(tmp_path, on_bad_image="skip")
    assert np.bincount(examples.labels).tolist() == [3, 2]
    assert all(examples.load(index).size == (64, 64) for index in range(5))
    assert [any(str(path) in line for line in examples.skipped) for path in (broken, dangling)] == [True, True]


def test_damaged_tiffs_are_told_by_their_own_sentence_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pillow warns of each tag, and libtiff writes to the terminal by itself."""
    rng = np.random.default_rng(0)
    for compression, number in itertools.product(("tiff_lzw", "tiff_deflate", "jpeg"), range(8)):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(buffer, "tiff", compression=compression)
        content = bytearray(buffer.getvalue())
        for place in rng.integers(8, len(content), 3):
            content[place] ^= 0x5A
        path = tmp_path / ("lamp", "mug")[number % 2] / f"{compression} {number}.tiff"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    examples = _open(tmp_path)
    refused = 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        silence_damage()
        for index in range(len(examples)):
            try:
                examples.load(index)
            except UserError:
                refused += 1
    assert refused > 8
    assert warned == []
    assert capfd.readouterr() == ("", "")


def test_a_class_of_damaged_images_alone_is_named(tmp_path: Path, write_image: Any) -> None:
    write_image(tmp_path / "lamp" / "1.png")
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "1.jpg").write_bytes(b"no image")
    assert "No images in the class 'mug'" in _error(tmp_path, on_bad_image="skip")


def test_links_in_a_circle_are_not_followed(tmp_path: Path, write_image: Any) -> None:
    for name in ("lamp", "mug"):
        write_image(tmp_path / name / "1.png")
    (tmp_path / "mug" / "again").symlink_to(tmp_path)
    (tmp_path / "mug" / "itself").symlink_to(tmp_path / "mug" / "itself")
    assert len(_open(tmp_path)) == 2


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


def test_a_site_keeps_the_splits_of_its_own_folder(tmp_path: Path, write_image: Any) -> None:
    for split, name in itertools.product(("train", "test"), ("lamp", "mug")):
        write_image(tmp_path / split / name / "1.png")
    assert _splits(open_site_images(tmp_path, ["lamp", "mug"], {})) == ["test", "test", "train", "train"]


STRANGE = ["{}", '{0!r} of "q"', "colt's foot", "Чашка", "杯子", "a[b]c", "100%", "x" * 200]


def test_a_strange_class_name_is_read_as_it_is(tmp_path: Path, write_image: Any) -> None:
    for number, name in enumerate(STRANGE):
        write_image(tmp_path / name / f"{number}.png")
    examples = _open(tmp_path)
    assert set(examples.class_names) == set(STRANGE)
    prompts = [examples.templates[0].format(name) for name in examples.class_names]
    assert prompts == [f"a photo of a {name}." for name in examples.class_names]


@pytest.mark.skipif(not OFFICE.is_dir(), reason="Office-Caltech10 is not beside the repository")
def test_office_caltech10_is_read_as_it_is() -> None:
    examples = _open(OFFICE)
    assert examples.domain_names == ("Caltech", "amazon", "dslr", "webcam")
    assert len(examples.class_names) == 10
    assert len(examples) == 2533
    assert all(examples.load(index).mode == "RGB" for index in range(0, 2533, 500))
