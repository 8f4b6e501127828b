"""How many images a site may count: no answer may count more than the server knows, or was told, that it has."""

from abc import ABC, abstractmethod

from fedgraft.config.run_config import RunConfig
from fedgraft.data.split import Fold


class SiteBounds(ABC):
    """Bounds on the counts in a site's answers."""

    @abstractmethod
    def training(self, site: int) -> int:
        """The most images that it may train on."""

    @abstractmethod
    def test(self, site: int, scope: str) -> int:
        """The most images of a scope that it may be tested on."""


class SplitBounds(SiteBounds):
    """In a simulation the server dealt the images itself."""

    def __init__(self, fold: Fold) -> None:
        self._shares = fold.sites

    def training(self, site: int) -> int:
        """The size of its share."""
        return len(self._shares[site].train)

    def test(self, site: int, scope: str) -> int:
        """The size of its share's scope."""
        return len(self._shares[site].tests[scope])


class ToldBounds(SiteBounds):
    """In a deployment a site says at its greeting how many images it has, unless it keeps that to itself.

    Args:
        classes: how many classes the federation has; 0 where that bounds nothing.
    """

    def __init__(self, config: RunConfig, classes: int = 0) -> None:
        self._most = config.max_site_images
        self._dealt = config.shots * classes or self._most
        self._told: dict[int, int] = {}

    def note(self, site: int, images: int | None) -> None:
        """Keep what a site said; None if it did not say."""
        if images is None:
            self._told.pop(site, None)
        else:
            self._told[site] = images

    def training(self, site: int) -> int:
        """What it said, and `shots` of every class where the run has these; without both, `max_site_images`."""
        return min(self._told.get(site, self._most), self._dealt, self._most)

    def test(self, site: int, scope: str) -> int:
        """What it said, or else `max_site_images`."""
        return min(self._told.get(site, self._most), self._most)
