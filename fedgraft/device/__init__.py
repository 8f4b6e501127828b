"""The runtime for devices. It needs onnxruntime, NumPy and Pillow, and imports nothing else of the package.

    from fedgraft.device import Predictor
    predictor = Predictor("bundle")
    predictor.predict("image.jpg").label

The same sources are published as `fedgraft-device`, which installs without torch and Flower.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it once, when it is imported

from fedgraft.device.bundle import Bundle, open_bundle
from fedgraft.device.ed25519 import read_public_key
from fedgraft.device.errors import BundleError, DeviceError, ImageError
from fedgraft.device.predictor import Prediction, Predictor

__all__ = [
    "Bundle", "BundleError", "DeviceError", "ImageError", "Prediction", "Predictor", "open_bundle", "read_public_key",
]  # fmt: skip
