"""Deployed sites with their own images: each splits its own folder, and the server knows only the class names."""

import numpy as np
from pydantic import Field, field_validator

from fedgraft.config.options import Options
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DEFAULT_TEMPLATES, KEY_BYTES, Examples
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.data.results import SITE_METRICS, site_results
from fedgraft.data.split import Fold, Scope, SiteShare, Split, test_mask, train_mask, training_images


class OwnDataOptions(Options):
    """What all sites have in common."""

    class_names: list[str] = Field(description="classes of the federation, sorted", examples=[["cat", "dog"]])

    @field_validator("class_names")
    @classmethod
    def _are_classes(cls, names: list[str]) -> list[str]:
        if len(set(names)) < max(2, len(names)) or names != sorted(names):
            raise ValueError("class_names must be at least two different names, sorted")
        return names


def folds(examples: Examples, config: RunConfig, options: OwnDataOptions) -> tuple[Fold, ...]:
    """One site's own images: by its own splits, else part of each class for testing and the rest for training.

    Raises:
        UserError: nothing is left to train on.
    """
    testing = test_mask(examples, config)
    train = training_images(examples, train_mask(examples, config), config)
    if not len(train):
        raise UserError(f"All {len(examples)} images are for testing, and none is left to train on.")
    return (_fold(examples.class_names, (SiteShare(train, {"personal": np.flatnonzero(testing)}),)),)


def announced(options: OwnDataOptions) -> Split:
    """The classes, but nothing about the sites' images."""
    names = tuple(options.class_names)
    nothing = np.empty(0, np.int64), np.empty((0, KEY_BYTES), np.uint8)
    return Split(names, DEFAULT_TEMPLATES, *nothing, (_fold(names, ()),))


def _fold(class_names: tuple[str, ...], sites: tuple[SiteShare, ...]) -> Fold:
    classes = tuple(range(len(class_names)))
    return Fold(None, classes, (Scope("personal", classes),), sites)


PROTOCOL = Protocol(
    "own-data",
    "deployed sites, each with a folder of its own images",
    folds,
    site_results,
    metrics=SITE_METRICS,
    options=OwnDataOptions,
    preserved="personal",
    colours={"personal": "blue"},
    announced=announced,
)
