"""A backbone small enough to train in a test, and unlabelled images for it."""

import numpy as np
import pytest
from PIL import Image

from fedgraft.backbones import Backbone
from fedgraft.data.examples import content_key
from fedgraft.edge_export.tickets.images import ImagePool, ServerImages


@pytest.fixture(scope="session")
def pool(random_clip: Backbone) -> ImagePool:
    """24 images of noise with three class names."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 48, 48, 3)).astype(np.uint8)
    images = ServerImages(
        "noise",
        np.stack([content_key(image.tobytes()) for image in pixels]),
        lambda position: Image.fromarray(pixels[position]),
        ("circle", "square", "star"),
        ("a photo of a {}.",),
    )
    return ImagePool(random_clip, images)
