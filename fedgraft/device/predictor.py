"""From an image to a label with a calibrated probability: one onnxruntime session and a class bank beside it."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from fedgraft.device.bundle import Bundle, BundleError, open_bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.image_files import load_image
from fedgraft.device.manifest import GOLDEN, MODEL, PREPROCESSOR
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.device.tensors import read_tensors

Source = Path | str | Image.Image
_INPUT, _OUTPUT = "pixels", "embedding"


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        label: the most probable class, also where the answer is unknown.
        probability: its calibrated probability.
        probabilities: of every class, the most probable first.
        is_unknown: whether the probability is below the threshold that was chosen at export.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    is_unknown: bool


class Predictor:
    """Classifies images with a bundle. Several threads may use one predictor, and swap its classes meanwhile.

    Args:
        bundle: a directory or a zip, or one that is open already.
        key: the public key that must have signed; see `open_bundle`.
        threads: of onnxruntime; as many as there are cores unless given.
        spinning: whether its threads wait busily for work, which is quicker where no other process needs the cores.

    Raises:
        BundleError: the bundle is not whole, not signed, or not for this runtime.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        key: bytes | None = None,
        threads: int | None = None,
        spinning: bool = True,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, key)
        if opened.manifest.kind != "bundle":
            raise BundleError(f"{opened.path} is a class bank without an encoder; give it to swap_classes.")
        self.bundle = opened
        self._key = key
        self._swap = threading.Lock()
        self._classes = ClassBank.read(opened)
        try:
            self.preprocessing = Preprocessing.from_config(opened.read_json(PREPROCESSOR))
        except ValueError as error:
            raise BundleError(f"The preprocessing of the bundle {opened.path} cannot be used: {error}.") from error
        self._session = _session(opened, threads, spinning)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that images are told apart among."""
        return self._classes.labels

    def predict(self, image: Source) -> Prediction:
        """Classify one image file, or one image.

        Raises:
            ImageError: it cannot be used.
        """
        return self.predict_many([image])[0]

    def predict_many(self, images: Sequence[Source]) -> list[Prediction]:
        """Classify several images with one class bank, whatever is swapped meanwhile.

        Each image passes alone: an int8 model has one scale for all of a batch, so that an answer would depend on what
        else is in it.

        Raises:
            ImageError: one of them cannot be used.
        """
        classes = self._classes
        return [_prediction(classes, self._embedded(load_image(image))) for image in images]

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image features (B, dim) of unit norm, from pixel values (B, 3, height, width)."""
        return np.asarray(self._session.run([_OUTPUT], {_INPUT: pixels})[0], np.float32)

    def swap_classes(self, path: Path | str) -> None:
        """Replace the class bank by that of another bundle, or of a class bank alone, for the same encoder.

        A prediction that is under way ends with the bank that it began with.

        Raises:
            BundleError: it is not whole, for another encoder, by another signer, or older than the bank in use.
        """
        update = open_bundle(path, self._key or self.bundle.signer)
        mine = self.bundle.manifest
        if update.manifest.encoder != mine.encoder or update.manifest.dim != mine.dim:
            raise BundleError(
                f"The class bank {path} is for another encoder than that of the bundle {self.bundle.path}."
            )
        classes = ClassBank.read(update)
        with self._swap:
            if classes.version < self._classes.version:
                raise BundleError(
                    f"The class bank {path} has the version {classes.version}, older than {self._classes.version}, "
                    "which is in use; a device does not go back."
                )
            self._classes = classes

    def self_test(self) -> float:
        """The cosine between the golden embedding as exported and as this machine computes it.

        Raises:
            BundleError: it is lower than the bundle allows.
        """
        try:
            golden = read_tensors(self.bundle.read(GOLDEN))
            image, expected = Image.fromarray(golden["image"]), golden["embedding"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"The golden sample of the bundle {self.bundle.path} cannot be used: {error}.") from error
        cosine = float(self._embedded(image)[0] @ expected)
        least = self.bundle.manifest.min_cosine
        if least is None or not cosine >= least:
            raise BundleError(
                f"This machine computes another embedding than the exporter: the cosine of the golden sample is "
                f"{cosine:.4f}, and at least {least} is needed. Export again, without --quantize int8 if it was given."
            )
        return cosine

    def _embedded(self, image: Image.Image) -> NDArray[np.float32]:
        return self.embed(self.preprocessing.pixels(image)[None])


def _prediction(classes: ClassBank, embedding: NDArray[np.float32]) -> Prediction:
    probabilities = classes.probabilities(embedding)[0]
    order: Iterable[int] = np.argsort(-probabilities, kind="stable").tolist()
    ranked = {classes.labels[index]: float(probabilities[index]) for index in order}
    label, probability = next(iter(ranked.items()))
    return Prediction(label, probability, ranked, probability < classes.unknown_below)


def _session(bundle: Bundle, threads: int | None, spinning: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        session = onnxruntime.InferenceSession(bundle.read(MODEL), options, providers=["CPUExecutionProvider"])
        shapes = [(port.name, len(port.shape)) for port in (*session.get_inputs(), *session.get_outputs())]
    except BundleError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class
        raise BundleError(f"model.onnx of the bundle {bundle.path} cannot be loaded: {error}") from error
    if shapes != [(_INPUT, 4), (_OUTPUT, 2)]:
        raise BundleError(f"model.onnx of the bundle {bundle.path} does not turn pixels into an embedding: {shapes}.")
    return session
