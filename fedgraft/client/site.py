"""A site: its share of the data, its adapter and its personal state; and several sites training side by side."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.augmentation import AugmentedImages
from fedgraft.client.evaluation import Model, ScopeResult, TestSet, evaluate_together
from fedgraft.client.loaded_run import LoadedRun
from fedgraft.client.shared_model import SharedModel
from fedgraft.client.training import TrainingData, train_together
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator, keyed_normal
from fedgraft.core.refusals import Refusal, refusing
from fedgraft.data.examples import IntArray
from fedgraft.flower.messages import Arrays, Job
from fedgraft.methods.adapter import Adapter
from fedgraft.runs.personal_state import PersonalState
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Noise


class Site:
    """One site in one fold; `attempt` is the server's, see `Job`."""

    def __init__(self, run: LoadedRun, fold: int, site: int, attempt: int = 0) -> None:
        self.run, self.fold, self.site, self.attempt = run, fold, site, attempt
        self._fold = run.split.folds[fold]
        self._share = run.share(fold, site)
        self.state = PersonalState(run.state_folder(fold, site), run.plan.identity(run.backbone))

    def adapter(self, shared: dict[str, torch.Tensor], last_round: int) -> Adapter:
        """The method's adapter with the server's arrays and the site's personal ones of the last round.

        Raises:
            Refusal: the personal state cannot be read, or parameters do not fit the method.
        """
        with refusing("configuration"):
            run = self.run
            adapter = run.plan.adapter(run.vocabulary, self.site, self.fold, last_round, run.noise_key)
        with refusing("parameters"):
            _require_fit("The server's parameters", shared, adapter.server_state())
        adapter.load(shared)
        with refusing("state"):
            if adapter.personal_names and (personal := self.state.load(last_round)) is not None:
                _require_fit(f"The tensors of the personal state in {self.state.folder}", personal, adapter.personal())
                adapter.load(personal)
        return adapter

    def answer(self, adapter: Adapter, received: Arrays, server_round: int, loss: float, seconds: float) -> Answer:
        """Store the personal parameters of a trained adapter and return the answer; raises Refusal if it cannot."""
        if personal := adapter.personal():
            with refusing("state"):
                self.state.save(server_round, personal, self.attempt)
        arrays = {name: value.numpy().copy() for name, value in adapter.shared().items()}
        if (transform := self.run.plan.composition.transform) is not None:
            arrays = transform.release(arrays, received, self._noise(server_round))
        return Answer(self.site, arrays, len(self._share.train), loss, seconds)

    def _noise(self, server_round: int) -> Noise:
        key, place = self.run.noise_key(), (self.fold, self.site, server_round)
        return lambda count, content: keyed_normal(key, count, "site noise", *place, content)

    def tests(self) -> dict[str, TestSet]:
        """The site's test images by scope."""
        tests = {}
        for scope in self._fold.scopes:
            positions, classes = self._share.tests[scope.name], self._fold.candidates(scope, self._share)
            tests[scope.name] = TestSet(positions, self.run.labels(positions, classes), classes, scope.classes)
        return tests

    def batches_generator(self, server_round: int) -> np.random.Generator:
        """The generator that shuffles the site's images in a round."""
        return generator(self.run.plan.config.seed, "batches", self.fold, self.site, server_round)

    def training_data(self, server_round: int) -> TrainingData:
        """The site's training images."""
        run, config, positions = self.run, self.run.plan.config, self._share.train
        classes = self._fold.classes_of(self._share)
        drawn = None
        if config.augment != "none":
            rng = generator(config.seed, "augment", self.fold, self.site, server_round)
            form = run.plan.representation(run.backbone)
            drawn = AugmentedImages(run.backbone, run.opened, positions, form, config.augment, rng)
        return TrainingData(run.features(positions, config.views), run.labels(positions, classes), classes, drawn)


def train_sites(
    sites: Sequence[Site], shared: Arrays, server_round: int, own: Mapping[int, Arrays] | None = None
) -> dict[int, Answer | str]:
    """Train several sites of one fold for a round and return for each its answer, or the reason why it has none.

    Args:
        own: what single sites have received besides, by site.
    """
    own = own or {}
    adapters, results = _adapters(sites, shared, own, server_round - 1)
    for site in sites if sites[0].attempt else ():
        try:
            with refusing("stale"):
                site.state.refuse_stale(site.attempt, server_round)
        except Refusal as refusal:
            adapters.pop(site.site, None)
            results[site.site] = site.run.reason(refusal)
    able = [site for site in sites if site.site in adapters]
    if able:
        began = time.perf_counter()
        losses = train_together(
            [adapters[site.site] for site in able],
            [site.training_data(server_round) for site in able],
            able[0].run.plan.config,
            [site.batches_generator(server_round) for site in able],
            server_round,
            able[0].run.plan.composition.training,
        )
        seconds = (time.perf_counter() - began) / len(able)
        for site, loss in zip(able, losses, strict=True):
            try:
                received = {**shared, **own.get(site.site, {})}
                results[site.site] = site.answer(adapters[site.site], received, server_round, loss, seconds)
            except UserError as error:
                results[site.site] = site.run.reason(error)
    return results


def evaluate_sites(
    sites: Sequence[Site], shared: Arrays, server_round: int, own: Mapping[int, Arrays] | None = None
) -> dict[int, dict[str, ScopeResult] | str]:
    """Evaluate every scope with the shared parameters and each site's latest personal ones.

    Where nothing is personal, and all have received the same, one model serves all sites, and is kept for those that
    are evaluated later: its class features are computed once, and it sees an image once.

    Args:
        own: what single sites have received besides, by site.
    """
    run, place = sites[0].run, (sites[0].fold, server_round)
    able: Sequence[Site] = sites
    results: dict[int, dict[str, ScopeResult] | str] = {}
    if not own and (kept := run.shared_model) is not None and kept.is_of(place, shared):
        models = [kept.model] * len(sites)
    else:
        adapters, results = _adapters(sites, shared, own or {}, server_round)
        able = [site for site in sites if site.site in adapters]
        models = [Model(adapters[site.site], partial(_features, run, adapters[site.site])) for site in able]
        if able and models[0].adapter.site_independent and not own:
            models = [models[0]] * len(able)
            run.shared_model = SharedModel(place, shared, models[0])
    if able:
        measured = evaluate_together(models, [site.tests() for site in able])
        results.update({site.site: result for site, result in zip(able, measured, strict=True)})
    return results


@torch.no_grad()
def _features(run: LoadedRun, adapter: Adapter, positions: IntArray) -> Tensor:
    """Image features (n, dim) of some examples, computed in parts to limit memory."""
    backbone = adapter.vocabulary.backbone
    if not len(positions):  # a site holds nothing of another's domain, and no image tower takes nothing
        return torch.empty(0, backbone.dim, device=backbone.device)
    parts = np.array_split(positions, -(-len(positions) // backbone.images_per_pass))
    return torch.cat([adapter.image_features(run.features(part)[:, 0].float()) for part in parts])


def _adapters(
    sites: Sequence[Site], shared: Arrays, own: Mapping[int, Arrays], last_round: int
) -> tuple[dict[int, Adapter], dict[int, Any]]:
    """The adapter of each site, or the reason why it has none.

    All sites get the same tensors of what they share, so that what a method only reads is in memory once.
    """
    device = sites[0].run.backbone.device

    def tensors_of(arrays: Arrays) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}

    tensors = tensors_of(shared)
    adapters: dict[int, Adapter] = {}
    failed: dict[int, Any] = {}
    for site in sites:
        try:
            adapters[site.site] = site.adapter({**tensors, **tensors_of(own.get(site.site, {}))}, last_round)
        except UserError as error:
            failed[site.site] = site.run.reason(error)
    return adapters, failed


def _require_fit(what: str, given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise UserError unless names and shapes are those of the method."""
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != wanted:
        raise UserError(f"{what} have the shapes {shapes}, but the method needs {wanted}.")


def sites_for(run: LoadedRun, job: Job, sites: Sequence[int]) -> list[Site]:
    """The sites that a job is for; raises Refusal if this node's backbone is not the server's."""
    require_fingerprint(run, job)
    return [Site(run, job.fold, site, job.attempt) for site in sites]


def require_fingerprint(run: LoadedRun, job: Job) -> None:
    """Raise Refusal for a job from a server with another backbone."""
    if run.backbone.fingerprint != job.fingerprint:
        raise Refusal(
            "fingerprint",
            f"the server's backbone has the fingerprint {job.fingerprint[:16]}..., but this site's has "
            f"{run.backbone.fingerprint[:16]}...; both need the same backbone",
        )
