"""One site at work: its share of the data, its adapter, its personal state; and the process that holds many sites.

A process loads backbone and data once (`Workplace`) and serves whatever sites Flower sends it.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedgraft.adapters.base import Adapter, Vocabulary
from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.features import FeatureStore, require_rows, view_keys
from fedgraft.client.evaluation import ScopeResult, TestSet, evaluate
from fedgraft.client.state import PersonalState
from fedgraft.client.training import TrainingData, train
from fedgraft.config import RunConfig
from fedgraft.data.dealt import DealtData, read_dealt
from fedgraft.data.examples import IntArray
from fedgraft.errors import UserError
from fedgraft.files import cache_root
from fedgraft.messages import Arrays, Job
from fedgraft.methods import load_method
from fedgraft.randomness import derived_seed, generator
from fedgraft.strategies.answers import Answer


class Workplace:
    """What all sites of a process share: the frozen backbone, the mapped features, the dealt data."""

    def __init__(self, config: RunConfig, run: Path, backbone: Backbone, data: DealtData) -> None:
        self.config, self.run, self.backbone, self.data = config, run, backbone, data
        self.method = load_method(config.method)
        self.options = self.method.parse_options(config.method_options)
        self.vocabulary = Vocabulary(backbone, data.deal.class_names, data.deal.templates)
        store = FeatureStore(cache_root(), backbone)
        self._vectors = store.vectors()
        self._rows = np.full((len(data.keys), config.views), -1, np.int64)
        self._rows[data.used, 0] = require_rows(store, data.keys[data.used])
        trained = data.training_positions()
        for view in range(1, config.views):
            self._rows[trained, view] = require_rows(store, view_keys(data.keys[trained], view, config.seed))

    def features(self, positions: IntArray, views: int = 1) -> torch.Tensor:
        """Image features (n, views, dim) of some examples, copied from the mapped file."""
        return torch.from_numpy(np.asarray(self._vectors[self._rows[positions, :views]]))


class Site:
    """One site in one fold."""

    def __init__(self, workplace: Workplace, fold: int, site: int) -> None:
        self.workplace, self.fold, self.site = workplace, fold, site
        self._fold = workplace.data.deal.folds[fold]
        self._share = self._fold.sites[site]
        identity = {"method": workplace.config.method, "fingerprint": workplace.backbone.fingerprint}
        self.state = PersonalState(workplace.run / "sites" / f"{fold:03d}" / f"{site:06d}", identity)

    def train(self, shared: Arrays, server_round: int) -> Answer:
        """Train for one round from the server's shared parameters, and keep the personal ones."""
        config = self.workplace.config
        adapter = self._adapter(shared, server_round - 1)
        rng = generator(config.seed, "batches", self.fold, self.site, server_round)
        loss = train(adapter, self._training_data(), config, rng)
        if personal := adapter.personal():
            self.state.save(server_round, personal)
        arrays = {name: value.numpy().copy() for name, value in adapter.shared().items()}
        return Answer(self.site, arrays, len(self._share.train), loss)

    def evaluate(self, shared: Arrays, server_round: int) -> dict[str, ScopeResult]:
        """Every scope with the shared parameters and the personal ones of the last round that the site took part in."""
        labels = self.workplace.data.deal.labels
        tests = {}
        for scope in self._fold.scopes:
            positions = self._share.tests[scope.name]
            tests[scope.name] = TestSet(
                self.workplace.features(positions)[:, 0],
                _positions_in(labels[positions], scope.classes),
                scope.classes,
            )
        return evaluate(self._adapter(shared, server_round), tests)

    def _adapter(self, shared: Arrays, last_round: int) -> Adapter:
        place = self.workplace
        seed = derived_seed(place.config.seed, "adapter", self.fold, self.site)
        adapter = place.method.adapter(place.vocabulary, place.options, torch.Generator().manual_seed(seed))
        adapter.load({name: torch.from_numpy(array.copy()) for name, array in shared.items()})
        if adapter.personal_names and (personal := self.state.load(last_round)) is not None:
            adapter.load(personal)
        return adapter

    def _training_data(self) -> TrainingData:
        positions = self._share.train
        classes = self._fold.train_classes
        labels = _positions_in(self.workplace.data.deal.labels[positions], classes)
        return TrainingData(self.workplace.features(positions, self.workplace.config.views), labels, classes)


@lru_cache(maxsize=1)
def workplace_for(config: str, run: str) -> Workplace:
    """The workplace of a run, loaded once in a process."""
    parsed = RunConfig.model_validate_json(config)
    return Workplace(parsed, Path(run), load_backbone(parsed.backbone), read_dealt(Path(run)))


def site_for(job: Job, site: int) -> Site:
    """The site that a job is for.

    Raises:
        UserError: this site's backbone is not the server's.
    """
    workplace = workplace_for(job.config.model_dump_json(), job.run)
    if workplace.backbone.fingerprint != job.fingerprint:
        raise UserError(
            f"The server's backbone has the fingerprint {job.fingerprint[:16]}..., "
            f"this site's {workplace.backbone.fingerprint[:16]}...; both need the same backbone."
        )
    return Site(workplace, job.fold, site)


def _positions_in(labels: IntArray, classes: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.searchsorted(np.asarray(classes), labels))
