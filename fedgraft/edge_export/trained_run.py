"""A run on disk and one site of it, or the prompt that all sites share: what an export starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.core.errors import UserError
from fedgraft.data.split import Split
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder

GLOBAL = "global"


@dataclass(frozen=True)
class TrainedRun:
    """One fold of a run, after its last round, and a site.

    Attributes:
        split: without positions of images where those are at the sites.
        checkpoint: of the last round; None for a method that trains nothing.
        site: its number in the run; None for the prompt that all sites share.
        state: the folder of the site's personal parameters.
        deployed_name: of a deployed site that was named by its folder alone; its number is then 0, and decides nothing.
    """

    directory: RunDirectory
    plan: Plan
    backbone: Backbone
    split: Split
    fold: int
    checkpoint: Checkpoint | None
    site: int | None
    state: Path | None
    deployed_name: str | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        site: str | None,
        fold: str | None = None,
        site_folder: Path | None = None,
        needs: Needs | None = None,
    ) -> Self:
        """Load a run.

        Args:
            path: the run directory.
            site: "global", or the number of a site; None for the site of `site_folder`, and without one for "global".
            fold: the domain left out, for a run with several folds.
            site_folder: of a deployed site, which keeps its personal parameters there.
            needs: of the backbone, beyond what the run needs.

        Raises:
            UserError: there is no such run, fold or site, or the run has not trained yet.
        """
        directory = RunDirectory(path)
        plan = Plan.of(directory.config())
        plan.require_backbone(needs=needs)
        split = plan.announced if plan.protocol.deployed else directory.split
        number = _fold_number(split, fold, path)
        folder = None if site_folder is None or site == GLOBAL else SiteFolder.open(site_folder)
        named = folder.settings.name if folder is not None and site is None else None
        site_number = 0 if named is not None else _site_number(site or GLOBAL, plan.config.sites, path)
        backbone = plan.load_backbone(device=torch.device("cpu"))
        checkpoint = None
        if plan.method.trains:
            checkpoint = directory.checkpoints.newest(number, backbone.fingerprint)
            if checkpoint is None:
                raise UserError(f"The run in {path} has trained nothing yet: its first round has not ended.")
        state = None
        if folder is not None:
            state = _deployed_state(folder, directory, number, required=named is None)
        elif folder is None and site_number is not None:
            state = directory.personal_state(number, site_number)
        return cls(directory, plan, backbone, split, number, checkpoint, site_number, state, named)

    @property
    def site_name(self) -> str:
        """The site as the user writes it."""
        return self.deployed_name or (GLOBAL if self.site is None else str(self.site))

    @property
    def round(self) -> int:
        """The last round; 0 for a method that trains nothing."""
        return 0 if self.checkpoint is None else self.checkpoint.round

    def adapter(self, labels: Sequence[str] | None = None) -> Adapter:
        """The method's adapter with the server's parameters and the site's own.

        Args:
            labels: the classes; the run's own by default.

        Raises:
            UserError: the labels are too long for the text tower, or differ from the run's although the method learns
                something per class; or the site has no personal parameters.
        """
        if labels is None or tuple(labels) == self.split.class_names:
            vocabulary = Vocabulary.of(self.backbone, self.split)
        else:
            vocabulary = Vocabulary(self.backbone, labels, self.split.templates)
        adapter = self.plan.adapter(vocabulary, self.site, self.fold, self.round)
        checkpoint = self._received()
        if checkpoint is None:
            return adapter
        if labels is None:
            state = adapter.server_state()
            checkpoint.require_shapes({name: tuple(value.shape) for name, value in state.items()})
        shared = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.arrays.items()}
        values = {**shared, **self._personal(adapter, shared)}
        shapes = {name: value.shape for name, value in {**adapter.server_state(), **adapter.personal()}.items()}
        if other := sorted(name for name in shapes.keys() & values.keys() if shapes[name] != values[name].shape):
            raise UserError(
                f"The method {self.plan.config.method!r} learns {other[0]!r} for the run's own classes and cannot take "
                "other labels; leave --labels out."
            )
        adapter.load(values)
        return adapter

    def _received(self) -> Checkpoint | None:
        """The checkpoint with what the site receives of it; that of all sites as it is."""
        checkpoint, composition = self.checkpoint, self.plan.composition
        if checkpoint is None or self.site is None or not composition.rule.sends_each_its_own:
            return checkpoint
        if self.deployed_name is not None:
            raise UserError(
                f"Under {self.plan.config.strategy or self.plan.config.method!r} every site receives parameters of its "
                f"own, by its number, which the folder of the site {self.deployed_name!r} does not tell; give it with "
                "--site NUMBER."
            )
        return replace(checkpoint, arrays=composition.received(self.site, checkpoint.arrays, checkpoint.state))

    def _personal(self, adapter: Adapter, shared: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not adapter.personal_names:
            return {}
        if self.state is None and self.deployed_name is not None:
            raise UserError(
                f"The site {self.deployed_name!r} keeps no personal parameters under the name of the run in "
                f"{self.directory.path}; --site global takes the prompt that all share."
            )
        if self.state is None:
            if not adapter.shared():
                raise UserError(
                    f"The method {self.plan.config.method!r} shares nothing between sites, so there is no global "
                    "prompt; give the number of a site."
                )
            return adapter.impersonal(shared)
        personal = PersonalState(self.state, self.plan.identity(self.backbone)).load(self.round)
        if personal is None:
            raise UserError(
                f"Site {self.site} has no personal parameters in {self.state}. A deployed site keeps its own: export "
                "on its machine, with --site-folder DIR."
            )
        return personal


def class_features(adapter: Adapter, labels: Sequence[str] | None = None) -> torch.Tensor:
    """The class bank (C, dim): float32 rows of unit norm on the CPU, of all classes or of some, in their order."""
    names = adapter.vocabulary.class_names
    return features_of(adapter, range(len(names)) if labels is None else [names.index(label) for label in labels])


@torch.no_grad()
def features_of(adapter: Adapter, classes: Sequence[int]) -> torch.Tensor:
    """The class bank of some classes, by their positions in the adapter's class names."""
    features = adapter.class_features(tuple(classes)).float().cpu()
    return torch.nn.functional.normalize(features, dim=-1).contiguous()


def _fold_number(split: Split, fold: str | None, path: Path) -> int:
    names = [each.name for each in split.folds]
    if fold is None and len(names) == 1:
        return 0
    if fold is not None and fold in names:
        return names.index(fold)
    known = ", ".join(name for name in names if name is not None) or "none"
    if fold is None:
        raise UserError(f"The run in {path} has a fold for each domain it left out; name one with --fold: {known}.")
    raise UserError(f"The run in {path} has no fold {fold!r}; it has {known}.")


def _site_number(site: str, sites: int, path: Path) -> int | None:
    if site == GLOBAL:
        return None
    if not site.isdecimal() or int(site) >= sites:
        raise UserError(
            f"The run in {path} has no site {site!r}; its sites are 0 to {sites - 1}, and {GLOBAL} is the prompt that "
            "they share."
        )
    return int(site)


def _deployed_state(site: SiteFolder, directory: RunDirectory, fold: int, required: bool) -> Path | None:
    """Where a deployed site keeps the state of a run: under the run's name at the server, or in the only folder.

    Raises:
        UserError: there is no such folder, and one is required.
    """
    name = directory.deployed_name()
    if name is not None and (named := site.state / name / f"{fold:03d}").is_dir():
        return named
    known = sorted(site.state.glob(f"*/{fold:03d}"))
    if len(known) == 1:
        return known[0]
    if not required:
        return None
    raise UserError(
        f"The site in {site.path} keeps the state of {len(known)} runs, and none under the name of {directory.path}."
    )
