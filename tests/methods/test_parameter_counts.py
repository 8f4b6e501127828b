"""How many numbers each method trains and sends at published sizes, from shapes alone, and what papers print."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedgraft.config.registry import METHODS
from fedgraft.methods.vocabulary import Vocabulary
from tests.methods.published_sizes import SIGLIP_B16, VIT_B16, SizedBackbone

CLASSES = 100
Count = Callable[[int, int, int], int]


def _attention(width: int) -> int:
    """Queries, values and outputs with a bias, keys without."""
    return 4 * width**2 + 3 * width


def _proxy(width: int) -> int:
    return width + _attention(width) + 4 * width


def _mapper(width: int, source: int) -> int:
    perceptron = width * 4 * width + 4 * width + 4 * width * width + width
    return width**2 + width + 2 * (source * width + width) + _attention(width) + 4 * width + perceptron


def _tpg(w: int, v: int, d: int) -> int:
    """Queries; attention to names; the norms of both and of what is attended; GEGLU and its output."""
    attention = 2 * w**2 + 2 * d * w + 4 * w
    return 4 * w + attention + 2 * (w + d + w) + (w * 8 * w + 8 * w) + (4 * w * w + w)


def _dpt(w: int, v: int, d: int) -> int:
    lower, vectors, named = 11 * 10 * v, 10 * v, d * v + v
    return 16 * w + lower + vectors + named + 2 * 32 * v + v * v + 4 * v + CLASSES * v


def _hicropl(w: int, v: int, d: int) -> int:
    return 9 * 2 * (w + v) + 6 * _proxy(w) + 3 * _proxy(v) + _mapper(v, w) + _mapper(w, v)


def _cocoop(w: int, v: int, d: int) -> int:
    """Four vectors, and two layers whose hidden width is a sixteenth."""
    hidden = d // 16
    return 4 * w + d * hidden + hidden + hidden * w + w


def _low_rank(w: int, v: int, d: int) -> int:
    """Queries and values of twelve layers of the text tower, rank 4, A and B."""
    return 12 * 2 * 4 * (w + w)


TABLE: dict[str, tuple[Count, Count]] = {
    # trained, shared: of text width w, image width v and joint dimension d
    "zeroshot": (lambda w, v, d: 0, lambda w, v, d: 0),
    "local": (lambda w, v, d: 16 * w, lambda w, v, d: 0),
    **dict.fromkeys(("promptfl", "kgcoop", "proxprompt", "prograd"), (lambda w, v, d: 16 * w, lambda w, v, d: 16 * w)),
    **dict.fromkeys(("promptfolio", "fedpha", "dp-fpl"), (lambda w, v, d: 32 * w, lambda w, v, d: 16 * w)),
    "fedpgp": (lambda w, v, d: 16 * w + 16 * 8 + 8 * w, lambda w, v, d: 16 * w),
    "fedtpg": (_tpg, _tpg),
    "linear-probe": (lambda w, v, d: CLASSES * d, lambda w, v, d: CLASSES * d),
    "matryoshka": (lambda w, v, d: 2 * d * d, lambda w, v, d: 2 * d * d),
    **dict.fromkeys(("fedit", "fedex-lora", "flora", "flexlora", "hetlora", "lora-fair"), (_low_rank, _low_rank)),
    "fedsa-lora": (_low_rank, lambda w, v, d: _low_rank(w, v, d) // 2),
    "ffa-lora": (lambda w, v, d: _low_rank(w, v, d) // 2, lambda w, v, d: _low_rank(w, v, d) // 2),
    "feddpa": (lambda w, v, d: 2 * _low_rank(w, v, d), _low_rank),
    "rolora": (_low_rank, lambda w, v, d: _low_rank(w, v, d) // 2),
    "vpt": (lambda w, v, d: 9 * 4 * v, lambda w, v, d: 9 * 4 * v),
    "ivlp": (lambda w, v, d: 9 * 2 * (w + v), lambda w, v, d: 9 * 2 * (w + v)),
    "maple": (lambda w, v, d: 9 * (2 * w + w * v + v), lambda w, v, d: 9 * (2 * w + w * v + v)),
    "promptsrc": (lambda w, v, d: 9 * 4 * (w + v), lambda w, v, d: 9 * 4 * (w + v)),
    "fedmgp": (lambda w, v, d: 5 * 2 * (w + v), lambda w, v, d: 2 * 2 * (w + v)),
    "pfedmma": (
        lambda w, v, d: 9 * (2 * 32 * (w + v) + 2 * 32 + w + v + 32 * 32 + 32),
        lambda w, v, d: 9 * (32 * 32 + 32),
    ),
    "clip-adapter": (lambda w, v, d: 2 * d * (d // 4), lambda w, v, d: 2 * d * (d // 4)),
    "fedclip": (lambda w, v, d: 2 * (d * d + d), lambda w, v, d: 2 * (d * d + d)),
    "cocoop": (_cocoop, _cocoop),
    "fedotp": (lambda w, v, d: 32 * w, lambda w, v, d: 16 * w),
    "plot": (lambda w, v, d: 4 * 16 * w, lambda w, v, d: 4 * 16 * w),
    "tip-adapter": (lambda w, v, d: CLASSES * 16 * d, lambda w, v, d: 0),
    "pfedmoap": (lambda w, v, d: 16 * w + 4 * 128 * 128 + 128, lambda w, v, d: 16 * w),
    "dpt": (_dpt, _dpt),
    "hicropl": (_hicropl, _hicropl),
}
PUBLISHED: list[tuple[str, dict[str, Any], int, int]] = [
    # at ViT-B/16: MaPLe's own figure; the others as FedMGP prints them for 16 context vectors, in thousands
    ("maple", {"depth": 9, "n_ctx": 2}, 3_555_072, 3_555_072),
    ("promptfl", {"n_ctx": 16}, 8_192, 8_192),
    ("fedpgp", {"prompts": 2, "rank": 8}, 24_832, 16_384),
    ("promptfolio", {"n_ctx": 16}, 16_384, 8_192),
    ("fedotp", {"n_ctx": 16}, 16_384, 8_192),
    ("fedtpg", {"n_ctx": 4}, 4_206_080, 4_206_080),
    ("fedmgp", {"groups": 5, "sampled": 2, "n_ctx": 2}, 12_800, 5_120),
]


def _counts(name: str, backbone: SizedBackbone, **options: Any) -> tuple[int, int]:
    method = METHODS.load(name)
    vocabulary = Vocabulary(backbone, [f"class {number}" for number in range(CLASSES)], ("a photo of a {}.",))
    adapter = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(0))
    trained = sum(own.numel() for own in adapter.parameters() if own.requires_grad)
    return trained, sum(value.numel() for value in adapter.shared().values())


@pytest.mark.parametrize(("backbone", "sizes"), [(VIT_B16, (512, 768, 512)), (SIGLIP_B16, (768, 768, 768))])
@pytest.mark.parametrize("name", TABLE)
def test_a_method_trains_and_sends_as_much_as_its_formula_says(
    name: str, backbone: SizedBackbone, sizes: tuple[int, int, int]
) -> None:
    trained, shared = TABLE[name]
    assert _counts(name, backbone) == (trained(*sizes), shared(*sizes))


@pytest.mark.parametrize(("name", "options", "trained", "shared"), PUBLISHED)
def test_a_method_trains_and_sends_as_much_as_its_paper_prints(
    name: str, options: dict[str, Any], trained: int, shared: int
) -> None:
    assert _counts(name, VIT_B16, **options) == (trained, shared)


def test_every_method_has_its_row_in_the_table() -> None:
    own = {method.name for method in METHODS if method.adapter.__module__.startswith("fedgraft.methods.")}
    assert own - {*TABLE} == set(), "write down what these train and send"
