"""Fold: a run and a site, or the global prompt, become a class bank, all that a device has of the text tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgraft.methods.adapter import Adapter, Seat, Vocabulary
from fedgraft.backbones import Backbone, load_backbone
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.personal_state import PersonalState
from fedgraft.config.run_config import RunConfig, read_toml
from fedgraft.runs.split_file import DealtData, read_dealt
from fedgraft.data.protocols.protocol import Deal, named_deal
from fedgraft.device.class_bank import check_labels
from fedgraft.core.errors import UserError
from fedgraft.methods import load_method
from fedgraft.core.randomness import derived_seed
from fedgraft.runs.run_directory import RunDirectory

GLOBAL = "global"


@dataclass(frozen=True)
class Source:
    """Whose prompt is folded: a run on disk, a fold of it, and a site or none.

    Attributes:
        data: the dealt images; None where the images are at the sites.
        round: the last round.
        site: its number in the run; None for the global prompt.
        state: the folder of the site's personal parameters.
    """

    run: Path
    config: RunConfig
    backbone: Backbone
    deal: Deal
    data: DealtData | None
    fold: int
    round: int
    site: int | None
    state: Path | None

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return GLOBAL if self.site is None else str(self.site)


def open_run(run: Path, site: str, fold: str | None = None, site_folder: Path | None = None) -> Source:
    """Find a run and a site.

    Args:
        run: the run directory.
        site: "global", or the number of a site in the run.
        fold: the name of the domain that the federation left out, where the run has several.
        site_folder: of a deployed site, which keeps its personal parameters there and not in the run directory.

    Raises:
        UserError: there is no such run, fold or site, or the run has not trained yet.
    """
    if not (run / "config.toml").is_file():
        raise UserError(f"There is no run in {run}: it has no config.toml.")
    config = RunConfig.build(read_toml(run / "config.toml"))
    data = None if config.protocol == "own-data" else read_dealt(run)
    deal = named_deal(config.class_names) if data is None else data.deal
    number = _fold_number(deal, fold, run)
    where = _site_number(site, config, run)
    backbone = load_backbone(config.backbone, config.precision)
    last = _last_round(run, number, backbone, config)
    state = None
    if where is not None:
        state = run / "sites" / f"{number:03d}" / f"{where:06d}"
        if site_folder is not None:
            state = _deployed_state(SiteFolder.open(site_folder), run, number)
    return Source(run, config, backbone, deal, data, number, last, where, state)


def adapter_of(source: Source, labels: Sequence[str]) -> Adapter:
    """The method's adapter for some labels, with the server's parameters and the site's own.

    Raises:
        UserError: the method learns something for each class and the labels are others, the labels are too long for
            the text tower, or the site has no personal parameters.
    """
    config, backbone = source.config, source.backbone
    method = load_method(config.method)
    vocabulary = Vocabulary(backbone, labels, source.deal.templates)
    seed = derived_seed(config.seed, "adapter", source.fold, source.site or 0)
    options = method.parse_options(config.method_options)
    seat = Seat(config.seed, source.fold, source.site, source.round)
    adapter = method.adapter(vocabulary, options, torch.Generator().manual_seed(seed), seat)
    if not method.trains:
        return adapter
    checkpoint = RunDirectory(source.run).newest_checkpoint(source.fold, backbone.fingerprint)
    assert checkpoint is not None
    shared = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.arrays.items()}
    personal = _personal(source, adapter)
    values = {**shared, **personal}
    shapes = {name: value.shape for name, value in {**adapter.server_state(), **adapter.personal()}.items()}
    if other := sorted(name for name in shapes.keys() & values.keys() if shapes[name] != values[name].shape):
        raise UserError(
            f"The method {config.method!r} has learnt {other[0]!r} for the run's own classes, so it cannot be folded "
            "for other labels; leave --labels out."
        )
    adapter.load(values)
    return adapter


@torch.no_grad()
def class_features(adapter: Adapter, labels: Sequence[str] | None = None) -> torch.Tensor:
    """The class bank (C, dim), float32 rows of unit norm on the CPU, of all labels or of some, in their order."""
    names = adapter.vocabulary.class_names
    classes = range(len(names)) if labels is None else [names.index(label) for label in labels]
    features = adapter.class_features(tuple(classes)).float().cpu()
    return torch.nn.functional.normalize(features, dim=-1).contiguous()


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels from a text with commas, or from a file with one a line.

    Raises:
        UserError: they are empty, doubled or no text, or fewer than two.
    """
    path = Path(text)
    try:
        lines = path.read_text().splitlines() if path.is_file() else text.split(",")
        return check_labels([line.strip() for line in lines if line.strip() or not path.is_file()])
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The labels cannot be read from {text}: {error}.") from error
    except ValueError as error:
        raise UserError(f"The labels {text!r} cannot be used: {error}.") from error


def _personal(source: Source, adapter: Adapter) -> dict[str, torch.Tensor]:
    if not adapter.personal_names:
        return {}
    if source.state is None:
        if not adapter.shared():
            raise UserError(
                f"The method {source.config.method!r} shares nothing between sites, so there is no global prompt; "
                "give the number of a site."
            )
        return {name: torch.zeros_like(value) for name, value in adapter.personal().items()}
    identity = {"method": source.config.method, "fingerprint": source.backbone.fingerprint}
    personal = PersonalState(source.state, identity).load(source.round)
    if personal is None:
        raise UserError(
            f"Site {source.site} has no personal parameters in {source.state}; a deployed site keeps them itself: "
            "export there, with --site-folder DIR."
        )
    return personal


def _fold_number(deal: Deal, fold: str | None, run: Path) -> int:
    names = [each.name for each in deal.folds]
    if fold is None and len(names) == 1:
        return 0
    if fold not in names or fold is None:
        known = ", ".join(str(name) for name in names if name is not None) or "none"
        raise UserError(
            f"The run in {run} has a federation for each domain that it left out; name one with --fold: {known}."
            if fold is None
            else f"The run in {run} has no fold {fold!r}; it has {known}."
        )
    return names.index(fold)


def _site_number(site: str, config: RunConfig, run: Path) -> int | None:
    if site == GLOBAL:
        return None
    if not site.isdecimal() or int(site) >= config.sites:
        raise UserError(
            f"The run in {run} has no site {site!r}; its sites are 0 to {config.sites - 1}, and {GLOBAL} is the prompt "
            "that they share."
        )
    return int(site)


def _last_round(run: Path, fold: int, backbone: Backbone, config: RunConfig) -> int:
    if not load_method(config.method).trains:
        return 0
    checkpoint = RunDirectory(run).newest_checkpoint(fold, backbone.fingerprint)
    if checkpoint is None:
        raise UserError(f"The run in {run} has trained nothing yet: it has no checkpoint before its first round ends.")
    return checkpoint.round


def _deployed_state(site: SiteFolder, run: Path, fold: int) -> Path:
    """Where a deployed site keeps the state of a run: below the run's name at the server, or in the only folder."""
    known = sorted(site.state.glob(f"*/{fold:03d}"))
    attempts = RunDirectory(run).read_json("attempts.json")
    if attempts is not None and (named := site.state / str(attempts["run"]) / f"{fold:03d}").is_dir():
        return named
    if len(known) == 1:
        return known[0]
    raise UserError(f"The site in {site.path} keeps the state of {len(known)} runs, and none under the name of {run}.")
