"""The runtime for devices: onnxruntime, NumPy, Pillow and the standard library, and nothing else of the package.

    from fedgraft.device import Predictor
    predictor = Predictor("bundle")
    predictor.predict("image.jpg").label

The same sources are the distribution `fedgraft-device`, which installs without torch and Flower.
"""

from fedgraft.device.bundle import Bundle, BundleError, open_bundle
from fedgraft.device.ed25519 import read_public_key
from fedgraft.device.image_files import ImageError
from fedgraft.device.predictor import Prediction, Predictor

__all__ = ["Bundle", "BundleError", "ImageError", "Prediction", "Predictor", "open_bundle", "read_public_key"]
