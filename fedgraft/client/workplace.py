"""Where a process works: backbone and data of one run, loaded once for all the sites that the process serves."""

import socket
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedgraft.adapters.base import Vocabulary
from fedgraft.backbones import Backbone, best_device, load_backbone
from fedgraft.backbones.features import FeatureStore
from fedgraft.backbones.filling import feature_rows, fill_store
from fedgraft.config import RunConfig
from fedgraft.data.dealt import DealtData, read_dealt
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.protocols import SiteShare, own_deal
from fedgraft.data.sources import open_source
from fedgraft.errors import UserError
from fedgraft.files import cache_root, stored_key
from fedgraft.messages import Job
from fedgraft.methods import load_method
from fedgraft.randomness import public_key
from fedgraft.strategies.composition import compose


class Workplace(ABC):
    """What all sites of a process share: the frozen backbone, the mapped features, who holds which example.

    Args:
        cache: where image features are kept.
    """

    def __init__(self, config: RunConfig, backbone: Backbone, data: DealtData, cache: Path) -> None:
        self.config, self.backbone, self.data = config, backbone, data
        self.method = load_method(config.method)
        self.options = self.method.parse_options(config.method_options)
        self.site_part = compose(config).site
        self.vocabulary = Vocabulary(backbone, data.deal.class_names, data.deal.templates)
        store = FeatureStore(cache, backbone, self.method.adapter.image_layer(backbone, self.options))
        self._rows = feature_rows(store, config, data)
        if (self._rows[data.used, 0] < 0).any() or (self._rows[data.training_positions()] < 0).any():
            fill_store(store, config, self.examples(), data)
            self._rows = feature_rows(store, config, data)
        self._vectors = store.vectors()

    @abstractmethod
    def examples(self) -> Examples:
        """The images, to compute features that the cache lacks."""

    @abstractmethod
    def share(self, fold: int, site: int) -> SiteShare:
        """What a site holds."""

    @abstractmethod
    def state_folder(self, fold: int, site: int) -> Path:
        """Where a site's personal state is kept, and nothing else."""

    @abstractmethod
    def noise_key(self) -> bytes:
        """What a site's noise is drawn from, 32 bytes."""

    def features(self, positions: IntArray, views: int = 1) -> torch.Tensor:
        """What is cached of some examples, (n, views, ...), copied from the mapped file to the backbone's device."""
        return torch.from_numpy(np.asarray(self._vectors[self._rows[positions, :views]])).to(self.backbone.device)

    def labels(self, positions: IntArray, classes: tuple[int, ...]) -> torch.Tensor:
        """Labels (n,) of some examples as positions in `classes`, on the backbone's device."""
        found = np.searchsorted(np.asarray(classes), self.data.deal.labels[positions])
        return torch.from_numpy(found).to(self.backbone.device)


class DealtPlace(Workplace):
    """In a simulation: the server dealt the data and wrote the deal into the run directory, which all machines see."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        self._run = run
        backbone = load_backbone(config.backbone, config.precision, best_device())
        super().__init__(config, backbone, read_dealt(run), cache_root())

    def examples(self) -> Examples:
        """The data source once more, where the server filled the cache of another machine.

        Raises:
            UserError: other images are there than those that were dealt.
        """
        examples = open_source(self.config.data, self.config.seed, self.config.domains)
        if not np.array_equal(examples.keys, self.data.keys):
            raise UserError(
                f"The images of {self.config.data!r} on the machine {socket.gethostname()} are not those that were "
                "dealt: every machine needs the same."
            )
        return examples

    def share(self, fold: int, site: int) -> SiteShare:
        """As it was dealt."""
        return self.data.deal.folds[fold].sites[site]

    def state_folder(self, fold: int, site: int) -> Path:
        """In the run directory."""
        return self._run / "sites" / f"{fold:03d}" / f"{site:06d}"

    def noise_key(self) -> bytes:
        """From the seed: a simulation protects nobody, and its metrics are the same every time."""
        return public_key(self.config.seed)


class OwnPlace(Workplace):
    """At a deployed site: its own images, split by the site itself, and its own state."""

    def __init__(self, config: RunConfig, backbone: Backbone, examples: Examples, folder: Path, cache: Path) -> None:
        self._examples, self._folder = examples, folder
        super().__init__(config, backbone, DealtData(own_deal(examples, config), examples.keys), cache)

    def examples(self) -> Examples:
        """The site's images."""
        return self._examples

    def share(self, fold: int, site: int) -> SiteShare:
        """All that is here, whatever number the server gave the site."""
        return self.data.deal.folds[fold].sites[0]

    def state_folder(self, fold: int, site: int) -> Path:
        """In the site's folder."""
        return self._folder / f"{fold:03d}"

    def noise_key(self) -> bytes:
        """The site's own secret of the run."""
        return stored_key(self._folder / "noise.key")


@lru_cache(maxsize=1)
def _dealt_place(config: str, run: str) -> DealtPlace:
    return DealtPlace(RunConfig.model_validate_json(config), Path(run))


def dealt_place(job: Job) -> DealtPlace:
    """The workplace of a simulated run, loaded once in a process."""
    return _dealt_place(job.config.model_dump_json(), job.run)
