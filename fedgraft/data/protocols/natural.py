"""Sites as the data have them: writers, hospitals or cameras, each measured on its own test images."""

from typing import Literal

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import SITE_METRICS, site_results
from fedgraft.data.split import Fold, Scope, SiteShare, test_mask, train_mask, training_images


class NaturalOptions(Options):
    """What happens where the data have more writers than the run has sites."""

    writers: Literal["choose", "share"] = Field(
        "choose", description="draw as many as there are sites, or give each site several", examples=["share"]
    )


def folds(examples: Examples, config: RunConfig, options: NaturalOptions) -> tuple[Fold, ...]:
    """One federation of the source's own sites.

    Raises:
        UserError: the source names no writers, or has too few of them that have training images.
    """
    if examples.sites is None:
        raise UserError(
            "The data name no writers, hospitals or cameras, which this protocol takes for sites; use a source that "
            "does, or the protocol dirichlet."
        )
    testing, training = test_mask(examples, config), train_mask(examples, config)
    able = np.unique(examples.sites[training & (examples.sites >= 0)])
    if len(able) < config.sites:
        raise UserError(
            f"The data have {len(able)} writers with training images, too few for {config.sites} sites; give at most "
            f"{len(able)}."
        )
    shares = []
    for site, writers in enumerate(_writers(able, config, options)):
        mask = np.isin(examples.sites, writers)
        train = training_images(examples, mask & training, config, site)
        shares.append(SiteShare(train, {"personal": np.flatnonzero(mask & testing)}))
    classes = tuple(range(len(examples.class_names)))
    return (Fold(None, classes, (Scope("personal", classes),), tuple(shares)),)


def _writers(able: IntArray, config: RunConfig, options: NaturalOptions) -> list[IntArray]:
    """The writers of each site, drawn from the seed."""
    shuffled = generator(config.seed, "deal-writers").permutation(able)
    if options.writers == "choose":
        return [writer[None] for writer in np.sort(shuffled[: config.sites])]
    return [shuffled[site :: config.sites] for site in range(config.sites)]


PROTOCOL = Protocol(
    "natural",
    "the sites of the data: writers, hospitals or cameras, each measured on its own images",
    folds,
    site_results,
    metrics=SITE_METRICS,
    options=NaturalOptions,
    preserved="personal",
    colours={"personal": "blue"},
)
