"""Which images a run needs in the feature store, and how they are loaded, the same on every machine involved."""

import numpy as np
from PIL import Image

from fedgraft.backbones.feature_store import FeatureStore, Progress, view_image, view_keys
from fedgraft.config.run_config import RunConfig
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.split import Split


def fill_store(
    store: FeatureStore, config: RunConfig, examples: Examples, split: Split, progress: Progress | None = None
) -> None:
    """Compute the features that a run needs and the store lacks: every image in use, and the training images' views.

    Args:
        store: of the run's backbone.
        config: the number of views, and the seed that they are drawn from.
        examples: the examples that were split.
        progress: called with the number of images done and the number to do.
    """
    used, trained = split.used, split.trained
    store.fill(split.keys[used], lambda position: examples.load(int(used[position])), progress)
    keys = split.keys[trained]
    for view in range(1, config.views):

        def load(position: int, view: int = view) -> Image.Image:
            return view_image(examples.load(int(trained[position])), keys[position], view, config.seed)

        store.fill(view_keys(keys, view, config.seed), load, progress)


def feature_rows(store: FeatureStore, config: RunConfig, split: Split) -> IntArray:
    """The store's row for each example and view, (examples, views); -1 where it has none."""
    rows = np.full((len(split.keys), config.views), -1, np.int64)
    rows[split.used, 0] = store.rows(split.keys[split.used])
    trained = split.trained
    for view in range(1, config.views):
        rows[trained, view] = store.rows(view_keys(split.keys[trained], view, config.seed))
    return rows
