"""What a deployed site says about itself before the first round, read under the checks of every other answer."""

from collections.abc import Collection
from dataclasses import dataclass, field

from flwr.app import RecordDict

from fedgraft.core.plain_text import name_problem, plain
from fedgraft.flower.messages import CLASS_COUNTS, HELLO, IMAGES
from fedgraft.flower.record_values import config_in, metrics_in, text, whole_number


@dataclass(frozen=True)
class Hello:
    """A site's greeting.

    Attributes:
        name: plain text of at most 64 characters.
        version: of its fedgraft.
        fingerprint: of its backbone.
        images: how many images it has at most, the bound of all its later counts; None if it does not say.
        class_counts: its images by class, as far as it tells.
    """

    name: str
    version: str
    fingerprint: str
    images: int | None = None
    class_counts: dict[str, int] = field(default_factory=dict)


def read_hello(content: RecordDict, classes: Collection[str] = (), most: int = 2**31) -> Hello:
    """The greeting in a node's answer.

    Args:
        classes: of the federation; empty where they are not known.
        most: images that a site may have, `max_site_images`.

    Raises:
        ValueError: it cannot be read, its name is not plain, it counts classes that the federation does not have, or
            more images than a site may have.
    """
    if HELLO not in content.config_records:
        raise ValueError("it was not started with `fedgraft site start`, so it has no images of its own")
    own = config_in(content, HELLO)
    if problem := name_problem(own.get("name")):
        raise ValueError(problem)
    name, counts = str(own["name"]), {}
    try:
        if CLASS_COUNTS in content:
            record = metrics_in(content, CLASS_COUNTS)
            if classes and (unknown := sorted(record.keys() - set(classes))):
                raise ValueError(f"it has images of {plain(unknown[0])!r}, a class that the federation does not have")
            counts = {each: whole_number(record, each, 0, most) for each in sorted(record)}
        images = whole_number(own, IMAGES, 0, most) if IMAGES in own else None
        if sum(counts.values()) > (most if images is None else images):
            raise ValueError(f"its classes have {sum(counts.values())} images, more than it may have")
        return Hello(name, text(own, "version"), text(own, "fingerprint"), images, counts)
    except ValueError as error:
        raise ValueError(f"the greeting of {name!r} cannot be used: {error}") from error
