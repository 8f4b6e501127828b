"""A run as loaded by a process: backbone, split and memory-mapped features, once for all sites that it serves."""

import logging
import socket
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from fedgraft.backbones import Backbone
from fedgraft.backbones.required_features import feature_rows, fill_store
from fedgraft.client.known_peers import KnownPeers
from fedgraft.client.open_rounds import OpenRounds, RoundsInFolder, RoundsInMemory
from fedgraft.client.shared_model import SharedModel
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError, reason_of
from fedgraft.core.files import cache_root, stored_key
from fedgraft.core.randomness import public_key
from fedgraft.core.refusals import refusal_of
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.split import SiteShare, Split
from fedgraft.flower.messages import Job
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder

_log = logging.getLogger("fedgraft.worker")


class LoadedRun(ABC):
    """What all sites of a process share: the frozen backbone, the features mapped from `cache`, and the split.

    Attributes:
        open_rounds: what its sites keep of rounds of secure aggregation.
        smallest_sum: the fewest sites in a sum that its sites take part in, and that each of them masks with.
        smallest_threshold: the smallest fraction of a site's share holders that may recover its secrets.
        peers: signs its sites' keys of a round and checks those of others; None where nobody is a stranger.
        shared_model: the last model that was evaluated for all of its sites.
    """

    open_rounds: OpenRounds
    smallest_sum, smallest_threshold = 1, 0.5
    peers: KnownPeers | None = None
    shared_model: SharedModel | None = None

    def __init__(self, plan: Plan, backbone: Backbone, split: Split, cache: Path) -> None:
        self.plan, self.backbone, self.split = plan, backbone, split
        self.vocabulary = Vocabulary.of(backbone, split)
        store = plan.feature_store(cache, backbone)
        self._rows = feature_rows(store, plan.config, split)
        if (self._rows[split.used, 0] < 0).any() or (self._rows[split.trained] < 0).any():
            fill_store(store, plan.config, self.opened, split)
            self._rows = feature_rows(store, plan.config, split)
        self._vectors = store.vectors()

    @abstractmethod
    def examples(self) -> Examples:
        """The images, for features missing from the cache and for images drawn anew in every step."""

    @cached_property
    def opened(self) -> Examples:
        """`examples`, opened once."""
        return self.examples()

    @abstractmethod
    def share(self, fold: int, site: int) -> SiteShare:
        """What a site holds."""

    @abstractmethod
    def state_folder(self, fold: int, site: int) -> Path:
        """The folder of a site's personal state, which holds nothing else."""

    @abstractmethod
    def noise_key(self) -> bytes:
        """What a site's noise is drawn from, 32 bytes."""

    @abstractmethod
    def reason(self, error: Exception) -> str:
        """What the server is told of a failure."""

    def features(self, positions: IntArray, views: int = 1) -> torch.Tensor:
        """What is cached of some examples, (n, views, ...), copied from the mapped file to the backbone's device."""
        return torch.from_numpy(np.asarray(self._vectors[self._rows[positions, :views]])).to(self.backbone.device)

    def labels(self, positions: IntArray, classes: tuple[int, ...]) -> torch.Tensor:
        """Labels (n,) of some examples as positions in `classes`, on the backbone's device."""
        found = np.searchsorted(np.asarray(classes), self.split.labels[positions])
        return torch.from_numpy(found).to(self.backbone.device)


class SimulatedRun(LoadedRun):
    """In a simulation: the server wrote the split into the run directory, which all machines can read."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        self._directory = RunDirectory(run)
        self.open_rounds = RoundsInFolder(self._directory.open_rounds)
        plan = Plan.of(config)
        super().__init__(plan, plan.load_backbone(), self._directory.split, cache_root())

    def examples(self) -> Examples:
        """The data source, opened again where the server filled the cache of another machine.

        Raises:
            UserError: this machine has other images than the server.
        """
        examples = self.plan.open_examples()
        if not np.array_equal(examples.keys, self.split.keys):
            raise UserError(
                f"The images of {self.plan.config.data!r} on the machine {socket.gethostname()} are not those of the "
                "server: every machine needs the same images."
            )
        return examples

    def share(self, fold: int, site: int) -> SiteShare:
        """The site's share in the server's split."""
        return self.split.folds[fold].sites[site]

    def state_folder(self, fold: int, site: int) -> Path:
        """A folder in the run directory."""
        return self._directory.personal_state(fold, site)

    def noise_key(self) -> bytes:
        """Derived from the seed: a simulation protects nobody, and must be reproducible."""
        return public_key(self.plan.config.seed)

    def reason(self, error: Exception) -> str:
        """The whole reason: nobody is a stranger in a simulation."""
        return reason_of(error)


class DeployedRun(LoadedRun):
    """At a deployed site: its own images, split by the site itself, and its own state."""

    def __init__(self, plan: Plan, backbone: Backbone, examples: Examples, site: SiteFolder, name: str) -> None:
        self._examples, self._folder = examples, site.state / name
        self.open_rounds, policy = RoundsInMemory(), site.settings.policy
        self.smallest_sum, self.smallest_threshold = policy.smallest_sum, policy.smallest_threshold
        self.peers = KnownPeers(site)
        super().__init__(plan, backbone, plan.split(examples), site.cache)

    def examples(self) -> Examples:
        """The site's images."""
        return self._examples

    def share(self, fold: int, site: int) -> SiteShare:
        """All of the site's images, whatever number the server gave the site."""
        return self.split.folds[fold].sites[0]

    def state_folder(self, fold: int, site: int) -> Path:
        """A folder in the site's folder."""
        return self._folder / f"{fold:03d}"

    def noise_key(self) -> bytes:
        """The site's own secret for the run."""
        return stored_key(self._folder / "noise.key")

    def reason(self, error: Exception) -> str:
        """A code and its sentence; the site's log has the rest."""
        refusal = refusal_of(error)
        _log.warning("%s", refusal)
        return refusal.public


@lru_cache(maxsize=1)
def _simulated_run(config: str, run: str) -> SimulatedRun:
    return SimulatedRun(RunConfig.model_validate_json(config), Path(run))


def simulated_run(job: Job) -> SimulatedRun:
    """The run of a simulated job, loaded once per process."""
    return _simulated_run(job.config.model_dump_json(), job.run)
