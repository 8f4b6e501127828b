"""From an image to a label with a calibrated probability: an onnxruntime session and a class bank."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from fedgraft.device.bundle import Bundle, open_bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.errors import BundleError
from fedgraft.device.image_files import load_image
from fedgraft.device.manifest import MODEL, PREPROCESSOR
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.device.providers import CPU, find_provider, in_order
from fedgraft.device.self_test import SelfTest, self_test
from fedgraft.device.versions import Known, Versions, check_version

ImageSource = Path | str | Image.Image
_INPUT, _OUTPUT = "pixels", "embedding"


@dataclass(frozen=True)
class Prediction:
    """A prediction.

    Attributes:
        label: the most probable class, even where `is_unknown`.
        probability: its calibrated probability.
        probabilities: of every class, the most probable first.
        is_unknown: whether the probability is below the threshold chosen at export.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    is_unknown: bool


class Predictor:
    """Classifies images with a bundle. Threads may share one predictor, and swap its classes at any time.

    Args:
        bundle: a directory, a zip or an opened bundle.
        key: the required signer's public key; see `open_bundle`.
        threads: of onnxruntime; one per core by default.
        spinning: whether idle threads busy-wait, which is faster where no other process needs the cores.
        remember: whether the highest version that has run is kept beside the bundle; see `versions`.
        provider: what computes; see `find_provider`.

    Raises:
        BundleError: the bundle is incomplete, unsigned, not for this runtime, or older than one that has run from here.
        DeviceError: there is no such provider here.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        key: bytes | None = None,
        threads: int | None = None,
        spinning: bool = True,
        remember: bool = True,
        provider: str = CPU,
    ) -> None:
        chosen = find_provider(provider)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, key)
        if opened.manifest.kind != "bundle":
            raise BundleError(f"{opened.path} is a class bank without an encoder; pass it to swap_classes.")
        self.bundle = opened
        self._key = key
        self._swap = threading.Lock()
        self._versions = Versions(opened.path if remember else None)
        version = opened.manifest.version
        self._versions.check("bundle", version, opened.digest, f"The bundle {opened.path}")
        self._classes = ClassBank.read(opened)
        try:
            self.preprocessing = Preprocessing.from_config(opened.read_json(PREPROCESSOR))
        except ValueError as error:
            raise BundleError(f"The preprocessing of the bundle {opened.path} is invalid: {error}.") from error
        self._session = _session(opened, threads, spinning, chosen)
        self._versions.record("bundle", version, opened.digest)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the current class bank."""
        return self._classes.labels

    def predict(self, image: ImageSource) -> Prediction:
        """Classify one image, or one image file; raises ImageError if it cannot be used."""
        return self.predict_embedded(image)[0]

    def predict_embedded(self, image: ImageSource) -> tuple[Prediction, NDArray[np.float32]]:
        """The same, and the image's embedding (dim,)."""
        classes = self._classes
        embedding = self._embedded(load_image(image))
        return _prediction(classes, embedding), embedding[0]

    def predict_many(self, images: Sequence[ImageSource]) -> list[Prediction]:
        """Classify several images with one class bank, even if it is swapped meanwhile.

        Images pass one by one: an int8 model scales a whole batch at once, so a prediction would depend on the others.

        Raises:
            ImageError: one of them cannot be used.
        """
        classes = self._classes
        return [_prediction(classes, self._embedded(load_image(image))) for image in images]

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image features (B, dim) of unit norm, from pixel values (B, 3, height, width)."""
        return np.asarray(self._session.run([_OUTPUT], {_INPUT: pixels})[0], np.float32)

    def swap_classes(self, path: Path | str) -> None:
        """Replace the class bank by one for the same encoder, from another bundle or a class bank alone.

        A prediction in progress keeps the bank it started with.

        Raises:
            BundleError: it is incomplete, for another encoder, by another signer, older than the bank in use or than
                one that has run with this bundle, or another one of the same version.
        """
        update = open_bundle(path, self._key or self.bundle.signer)
        mine = self.bundle.manifest
        if update.manifest.encoder != mine.encoder or update.manifest.dim != mine.dim:
            raise BundleError(
                f"The class bank {path} is for another encoder than the one in the bundle {self.bundle.path}."
            )
        classes = ClassBank.read(update)
        with self._swap:
            what = f"The class bank {path}"
            check_version(classes.version, classes.digest, Known(self._classes.version, self._classes.digest), what)
            self._versions.check("classes", classes.version, classes.digest, what)
            self._classes = classes
            self._versions.record("classes", classes.version, classes.digest)

    def self_test(self) -> float:
        """The cosine between the exporter's embedding of the golden sample and this machine's; raises as `tested`."""
        return self.tested().cosine

    def tested(self) -> SelfTest:
        """Whether this machine computes from the golden images what the exporter did.

        Raises:
            BundleError: less of it than the bundle allows.
        """
        return self_test(self.bundle, lambda image: np.asarray(self._embedded(image)[0]))

    def _embedded(self, image: Image.Image) -> NDArray[np.float32]:
        return self.embed(self.preprocessing.pixels(image)[None])


def _prediction(classes: ClassBank, embedding: NDArray[np.float32]) -> Prediction:
    probabilities = classes.probabilities(embedding)[0]
    order: Iterable[int] = np.argsort(-probabilities, kind="stable").tolist()
    ranked = {classes.labels[index]: float(probabilities[index]) for index in order}
    label, probability = next(iter(ranked.items()))
    return Prediction(label, probability, ranked, probability < classes.unknown_below)


def _session(bundle: Bundle, threads: int | None, spinning: bool, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if bundle.manifest.saturating_pairs != 0:  # exact where 8-bit products could saturate, and slower there alone
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(bundle.read(MODEL), options, providers=in_order(provider))
        started = session.get_providers()
        shapes = [(port.name, len(port.shape)) for port in (*session.get_inputs(), *session.get_outputs())]
    except BundleError:
        raise
    except Exception as error:  # onnxruntime has no common error class
        raise BundleError(f"model.onnx in the bundle {bundle.path} cannot be loaded: {error}") from error
    if provider not in started:
        raise BundleError(f"onnxruntime could not start {provider} on this machine; it started {', '.join(started)}.")
    if shapes != [(_INPUT, 4), (_OUTPUT, 2)]:
        raise BundleError(f"model.onnx in the bundle {bundle.path} does not map pixels to an embedding: {shapes}.")
    return session
