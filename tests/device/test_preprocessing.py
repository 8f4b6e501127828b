"""Pixels on the device are those that the site trained on, and every image is read correctly or refused."""

import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fedgraft.backbones import Backbone
from fedgraft.data.sources.decoding import decode
from fedgraft.device.image_files import ImageError, load_image
from fedgraft.device.preprocessing import Preprocessing

SIZES = [(48, 48), (1, 1), (7, 5), (47, 49), (100, 61), (61, 100), (333, 48), (48, 77), (640, 481), (3, 200)]


def _image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_backbone_bit_for_bit(size: tuple[int, int], mini: Backbone) -> None:
    image = _image(*size)
    found = Preprocessing.from_config(mini.preprocessor_config()).pixels(image)
    assert np.array_equal(found, mini.preprocess([image])[0].numpy())


@pytest.mark.parametrize(
    ("size", "crop", "resample"),
    itertools.product([{"shortest_edge": 30}, {"height": 31, "width": 45}], [(24, 24), (40, 27), (33, 60)], [2, 3]),
)
def test_other_configurations_than_clips_own(size: dict[str, int], crop: tuple[int, int], resample: int) -> None:
    """Cropped beyond its edges an image gets a black border, as Hugging Face gives it one."""
    processor = CLIPImageProcessorPil(
        size=size, crop_size={"height": crop[0], "width": crop[1]}, resample=resample, image_mean=[0.1, 0.2, 0.3]
    )
    config = processor.to_dict()
    image = _image(70, 50)
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    plain |= {"size": size, "crop_size": {"height": crop[0], "width": crop[1]}}
    assert np.array_equal(Preprocessing.from_config(plain).pixels(image), expected)


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", SIZES)
def test_a_whole_image_is_squeezed_where_a_family_does_not_crop(size: tuple[int, int], resample: int) -> None:
    processor = SiglipImageProcessorPil(size={"height": 40, "width": 40}, resample=resample)
    image = _image(*size)
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    plain = json.loads(processor.to_json_string())
    assert "crop_size" not in plain or plain["crop_size"] is None
    assert np.array_equal(Preprocessing.from_config(plain).pixels(image), expected)


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_every_filter_with_a_crop(resample: int) -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}, resample=resample
    )
    expected = processor(images=[_image(70, 50)], return_tensors="np")["pixel_values"][0]
    found = Preprocessing.from_config(json.loads(processor.to_json_string()))
    assert np.array_equal(found.pixels(_image(70, 50)), expected)


@pytest.mark.parametrize("include_top", [False, True])
@pytest.mark.parametrize("do_normalize", [False, True])
def test_an_offset_and_a_second_division_as_efficientnet_has_them(include_top: bool, do_normalize: bool) -> None:
    """ALIGN's image processor."""
    processor = EfficientNetImageProcessorPil(
        size={"height": 50, "width": 50}, crop_size={"height": 41, "width": 41}, do_center_crop=True, resample=2,
        rescale_factor=1 / 127.5, rescale_offset=True, include_top=include_top, do_normalize=do_normalize,
    )  # fmt: skip
    expected = processor(images=[_image(70, 50)], return_tensors="np")["pixel_values"][0]
    found = Preprocessing.from_config(json.loads(processor.to_json_string()))
    assert np.array_equal(found.pixels(_image(70, 50)), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"size": None}, {"size": {"shortest_edge": 0}}, {"size": {"shortest_edge": 10**6}}, {"crop_size": "48"},
        {"do_pad": True}, {"size": {"shortest_edge": 9, "longest_edge": 12}}, {"size": {"height": 9}},
        {"image_mean": [1, 2]}, {"image_std": None}, {"rescale_factor": "x"}, {"resample": 99},
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_configuration(change: dict[str, object], mini: Backbone) -> None:
    config = {**mini.preprocessor_config(), **change}
    if config["size"] is None:
        config["do_resize"], config["size"] = True, "48"
    with pytest.raises(ValueError, match=r".+"):
        Preprocessing.from_config(config)


# --- images of every kind -------------------------------------------------------------------------


def test_cmyk_palette_gray_and_transparency_are_read_as_rgb(tmp_path: Path) -> None:
    source = Image.new("RGB", (20, 10), (200, 100, 50))
    for name, mode in (("c.jpg", "CMYK"), ("p.png", "P"), ("a.png", "RGBA"), ("l.png", "L"), ("la.png", "LA")):
        source.convert(mode).save(tmp_path / name)
        found = load_image(tmp_path / name)
        assert found.mode == "RGB"
        assert found.size == (20, 10)
        expected = (200, 100, 50) if mode not in ("L", "LA") else (source.convert("L").getpixel((0, 0)),) * 3
        assert np.abs(np.subtract(found.getpixel((5, 5)), expected)).max() <= 6, name


def test_16_bit_gray_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)


def test_an_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10))
    image.paste((255, 0, 0), (0, 0, 15, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = load_image(tmp_path / "turned.png")
    assert found.size == (10, 30)
    assert (found.getpixel((5, 3)), found.getpixel((5, 27))) == ((255, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P", "CMYK", "RGBA"])
def test_a_device_reads_what_a_site_read(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(path)
    else:
        _image(20, 20, mode).save(path)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(decode(path)))


def test_a_single_pixel(mini: Backbone) -> None:
    pixels = Preprocessing.from_config(mini.preprocessor_config()).pixels(Image.new("RGB", (1, 1), (255, 0, 128)))
    assert pixels.shape == (3, 48, 48)
    assert np.allclose(pixels[:, 0, 0], [1, -1, 0.0039], atol=1e-3)


def test_a_truncated_image(tmp_path: Path) -> None:
    _image(64, 64).save(tmp_path / "a.jpg")
    for name, part in (("half.jpg", 2), ("start.jpg", 100)):
        content = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // part])
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [20_000, 12_000])
def test_a_decompression_bomb_is_not_decoded(side: int, tmp_path: Path) -> None:
    """A PNG header that declares a huge image, as a hostile file would."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")))
    with pytest.raises(ImageError, match=r"bomb\.png .*(too large|limit)"):
        load_image(path)


def test_an_image_that_would_be_huge_once_resized(mini: Backbone) -> None:
    prepare = Preprocessing.from_config(mini.preprocessor_config())
    with pytest.raises(ImageError, match="too narrow"):
        prepare.pixels(Image.new("L", (1, 60_000)))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png is not a readable image"):
        load_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match="There is no image"):
        load_image(tmp_path / "missing.png")
