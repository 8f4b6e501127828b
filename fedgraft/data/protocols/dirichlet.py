"""Label skew (Hsu et al. 2019): class proportions differ from site to site, and each site is measured on its own.

A site without test images trains but is not measured.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import derived_seed
from fedgraft.data.examples import Examples
from fedgraft.data.partition import partition
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import SITE_METRICS, site_results
from fedgraft.data.split import Fold, Scope, SiteShare, class_protocol_mask, test_mask, train_mask, training_images


class DirichletOptions(Options):
    """How images are divided among the sites."""

    partition: Literal["dirichlet", "pathological", "iid"] = Field(
        "dirichlet", description="by drawn proportions, a few classes per site, or evenly", examples=["pathological"]
    )
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet distribution", examples=[0.1])
    classes_per_site: int = Field(2, ge=1, description="classes per site in the pathological partition", examples=[3])


def folds(examples: Examples, config: RunConfig, options: DirichletOptions) -> tuple[Fold, ...]:
    """One federation, training and test images partitioned alike; raises UserError if a site gets too few."""
    usable = np.flatnonzero(class_protocol_mask(examples))
    testing, training = test_mask(examples, config), train_mask(examples, config)
    seed = derived_seed(config.seed, "deal-examples") % 2**32
    labels = examples.labels[usable]
    parts = partition(options.partition, labels, config.sites, seed, options.alpha, options.classes_per_site)
    shares = []
    for site, members in enumerate(parts):
        mask = np.zeros(len(examples), bool)
        mask[usable[members]] = True
        train = training_images(examples, mask & training, config, site)
        tests = np.flatnonzero(mask & testing)
        if not len(train):
            raise UserError(
                f"Site {site} got no training images and {len(tests)} test images; "
                "use fewer sites, a larger alpha or another seed."
            )
        shares.append(SiteShare(train, {"personal": tests}))
    classes = tuple(range(len(examples.class_names)))
    return (Fold(None, classes, (Scope("personal", classes),), tuple(shares)),)


PROTOCOL = Protocol(
    "dirichlet",
    "class proportions that differ from site to site, each site measured on its own mixture",
    folds,
    site_results,
    metrics=SITE_METRICS,
    options=DirichletOptions,
    preserved="personal",
    colours={"personal": "blue"},
)
