"""How a data source is read: classes, splits, domains and writers with their counts, copies, and what is unreadable."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedgraft.core.errors import UserError
from fedgraft.data.examples import SPLIT_NAMES, Examples, IntArray
from fedgraft.data.split import content_groups, overlap_mask

_PROMPTS = 3
_NOTICES = 5
_AT_ONCE = 64
Progress = Callable[[int], None]


@dataclass(frozen=True)
class DataCheck:
    """How a source was read.

    Attributes:
        images: the number of all images.
        classes: the names in the order of the labels.
        counts: the number of images of each class.
        splits: images by split; empty where the source has no splits.
        domains, sites: images by domain, and by writer, hospital or camera; empty where there are none.
        templates: the hand-written prompts.
        prompts: the first template with the first class names.
        smallest: the name of the class with the fewest images.
        duplicates: how many images are copies of another by content.
        overlap: how many training images are copies of one for validation or testing, and do not train.
        conflicting: how many contents have more than one label.
        skipped: what was left out and why.
        unreadable: a sentence for each image that cannot be decoded; empty if none was decoded.
    """

    images: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    splits: dict[str, int]
    domains: dict[str, int]
    sites: dict[str, int]
    templates: tuple[str, ...]
    prompts: tuple[str, ...]
    smallest: str
    duplicates: int
    overlap: int
    conflicting: int
    skipped: tuple[str, ...]
    unreadable: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return asdict(self)


def check_examples(examples: Examples, decoding: bool = True, progress: Progress = lambda done: None) -> DataCheck:
    """Describe examples.

    Args:
        decoding: whether to decode every image, which finds the damaged ones.
        progress: called with the number of images decoded so far.
    """
    counts = np.bincount(examples.labels, minlength=len(examples.class_names))
    groups = content_groups(examples)
    labelled = np.unique(np.stack([groups, examples.labels]), axis=1)[0]
    has_domains = len(examples.domain_names) > 1
    return DataCheck(
        images=len(examples),
        classes=examples.class_names,
        counts=tuple(counts.tolist()),
        splits={} if examples.splits is None else _counts(SPLIT_NAMES, examples.splits.astype(np.int64)),
        domains=_counts(examples.domain_names, examples.domains) if has_domains else {},
        sites={} if examples.sites is None else _counts(examples.site_names, examples.sites),
        templates=examples.templates,
        prompts=tuple(examples.templates[0].format(name) for name in examples.class_names[:_PROMPTS]),
        smallest=examples.class_names[int(counts.argmin())],
        duplicates=len(groups) - len(np.unique(groups)),
        overlap=int(overlap_mask(examples).sum()),
        conflicting=int((np.unique(labelled, return_counts=True)[1] > 1).sum()),
        skipped=examples.skipped,
        unreadable=tuple(_unreadable(examples, progress)) if decoding else (),
    )


def notices(examples: Examples) -> list[str]:
    """What a user should know before a run: what was left out, and which training images do not train."""
    lines = [f"Left out: {line.removesuffix('.')}." for line in examples.skipped[:_NOTICES]]
    if (more := len(examples.skipped) - _NOTICES) > 0:
        lines.append(f"Left out: {more} more; `fedgraft data check` lists all.")
    if overlap := int(overlap_mask(examples).sum()):
        lines.append(
            f"Left out of training, because the same image is for validation or testing: {overlap} "
            f"training {'image' if overlap == 1 else 'images'}."
        )
    return lines


def _counts(names: Sequence[str], positions: IntArray) -> dict[str, int]:
    """How many examples have each name; names that none has are left out."""
    counts = np.bincount(positions, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _unreadable(examples: Examples, progress: Progress) -> list[str]:
    """A sentence for each image that cannot be decoded."""
    sentences: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(examples), _AT_ONCE):
            chunk = range(begin, min(begin + _AT_ONCE, len(examples)))
            sentences += [fault for fault in pool.map(lambda index: _fault(examples, index), chunk) if fault]
            progress(chunk.stop)
    return sentences


def _fault(examples: Examples, index: int) -> str | None:
    try:
        examples.load(index)
    except UserError as error:
        return str(error)
    return None
