"""What a classifier can be cut to: a part of its dimensions, and of the layers of its image tower."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cuts:
    """What a classifier was trained to be cut to, in increasing order; its whole size is left out.

    Attributes:
        dims: numbers of leading dimensions.
        depths: numbers of layers of the image tower.
    """

    dims: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
