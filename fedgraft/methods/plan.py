"""A plan: a configuration with everything it names resolved, once and in one place, before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from fedgraft.backbones import Backbone, best_device, load_backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.feature_store import FeatureStore
from fedgraft.backbones.loading import located
from fedgraft.backbones.representation import Representation
from fedgraft.config.options import Options
from fedgraft.config.registry import METHODS, PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed
from fedgraft.data.examples import Examples
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.sources.source import find_source
from fedgraft.data.split import Split
from fedgraft.methods.adapter import Adapter, AdapterContext
from fedgraft.methods.method import Method
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.components import Rule
from fedgraft.strategies.composition import Composition, compose


def asked_sites(sites: int, participation: float) -> int:
    """How many sites are asked to train in a round."""
    return max(1, round(participation * sites))


@dataclass(frozen=True)
class Plan:
    """The parts of a run; `composition` is the method's own rule, or what the user's strategy makes of it."""

    config: RunConfig
    method: Method
    options: Options
    protocol: Protocol
    protocol_options: Options
    composition: Composition

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Resolve a configuration and refuse every mistake that can be found before anything is loaded.

        Raises:
            UserError: an option is invalid, or method, strategy and number of sites cannot be combined.
        """
        method, protocol = METHODS.load(config.method), PROTOCOLS.load(config.protocol)
        options = method.parse_options(config.method_options)
        protocol_options = protocol.parse_options(config.protocol_options)
        own_rule = method.rule_for(options)
        plan = cls(config, method, options, protocol, protocol_options, compose(config.strategy, own_rule))
        plan._check_strategy(own_rule)
        if config.augment != "none" and config.views > 1:
            raise UserError(
                f"augment={config.augment!r} draws every image anew in every step, so the {config.views} views that "
                "are computed once would not be used; give one view, or augment='none'."
            )
        return plan

    def _check_strategy(self, own_rule: Rule) -> None:
        config, method, composition = self.config, self.method, self.composition
        if not config.strategy.strip():
            return
        if method.takes_no_strategy:
            raise UserError(
                f"The method {config.method!r} takes no strategy because {method.takes_no_strategy}; leave out "
                f"{config.strategy!r}."
            )
        if method.keeps_its_rule and (composition.transform or composition.rule is not own_rule):
            raise UserError(
                f"The method {config.method!r} keeps its own rule because {method.keeps_its_rule}; remove everything "
                f"but steps from {config.strategy!r}. Steps such as 'anchored' may follow the rule."
            )
        if composition.training and composition.training.adds_term:
            self._require_loss_of_features()
        asked, least = asked_sites(config.sites, config.participation), composition.rule.min_answers()
        if asked < least:
            raise UserError(
                f"The strategy {config.strategy!r} needs the answers of {least} sites per round, but the run asks "
                f"{asked} of its {config.sites} sites; use more sites or a less demanding rule."
            )
        composition.rule.check_participation(asked)
        if composition.rule.summed() and config.max_site_share < 1:
            raise UserError(
                f"max_site_share = {config.max_site_share:g} needs to see each site's number of examples, which the "
                f"strategy {config.strategy!r} hides; remove one of the two."
            )

    def _require_loss_of_features(self) -> None:
        config = self.config
        if not self.method.adapter.loss_of_features:
            raise UserError(
                f"The strategy {config.strategy!r} adds to the cross-entropy of image and class features, and the loss "
                f"of the method {config.method!r} has none; leave one of them out."
            )
        if config.loss != "softmax":
            raise UserError(
                f"The strategy {config.strategy!r} adds a softmax to the loss, which loss = {config.loss!r} replaces; "
                "leave one of them out."
            )

    # --- data and backbone ------------------------------------------------------------------------

    def open_examples(self) -> Examples:
        """The data source's table of examples; raises UserError if its files are missing or malformed."""
        source, options = find_source(self.config.data, self.config.data_options)
        return source.open(options, self.config.seed)

    def split(self, examples: Examples) -> Split:
        """Split examples under the protocol; raises UserError if it cannot be applied to them."""
        return self.protocol.split(examples, self.config, self.protocol_options)

    @cached_property
    def announced(self) -> Split:
        """What a deployment's server knows about the split: the classes, but nothing about the sites' images."""
        assert self.protocol.announced is not None
        return self.protocol.announced(self.protocol_options)

    @property
    def needs(self) -> Needs:
        """What the run needs of a backbone."""
        return Needs(loss=self.config.loss) | self.method.adapter.needs(self.options)

    def require_backbone(self, name: str | None = None, needs: Needs | None = None) -> None:
        """Check the backbone, or its copy under another name, by its configuration alone; nothing is loaded.

        Args:
            needs: beyond those of the run.

        Raises:
            UserError: there is none, it is of an unknown family, an option is invalid, or it cannot do what the run
                needs.
        """
        known = located(name or self.config.backbone)
        known.family.parse_options(self.config.backbone_options)
        known.require((needs or Needs()) | self.needs)

    def load_backbone(self, name: str | None = None, device: torch.device | None = None) -> Backbone:
        """The frozen backbone, or its copy under another name, on the given or the best available device.

        Raises:
            UserError: it cannot do what the run needs, or cannot be loaded.
        """
        self.require_backbone(name)
        config, device = self.config, device or best_device()
        return load_backbone(name or config.backbone, config.precision, device, config.backbone_options)

    def representation(self, backbone: Backbone) -> Representation:
        """What is cached of each image for the method."""
        return self.method.adapter.representation(backbone, self.options)

    def feature_store(self, cache: Path, backbone: Backbone) -> FeatureStore:
        """The store of the method's cached image features."""
        return FeatureStore(cache, backbone, self.representation(backbone))

    # --- adapters ---------------------------------------------------------------------------------

    def adapter(
        self,
        vocabulary: Vocabulary,
        site: int | None = None,
        fold: int = 0,
        last_round: int = 0,
        noise_key: Callable[[], bytes] | None = None,
    ) -> Adapter:
        """The method's adapter with its initial parameters.

        Args:
            site: the site it is for; None for the server.
            last_round: the last round before the adapter is built.
            noise_key: of the site's noise, where it trains.

        Raises:
            UserError: an option does not suit the backbone.
        """
        seed = self.config.seed
        place: tuple[int | str, ...] = ("server",) if site is None else (fold, site)
        generator = torch.Generator().manual_seed(derived_seed(seed, "adapter", *place))
        context = AdapterContext(seed, fold, site, last_round, self.config.loss, self.config.sites, noise_key)
        return self.method.adapter(vocabulary, self.options, generator, context)

    def identity(self, backbone: Backbone) -> dict[str, str]:
        """What personal state belongs to; state with another identity is refused."""
        return {"method": self.config.method, "fingerprint": backbone.fingerprint}
