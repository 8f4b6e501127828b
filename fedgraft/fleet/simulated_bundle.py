"""Bundles of a few kilobytes for simulated fleets: an encoder that averages colours, and a class for each colour.

They pass every check of a device; only their predictions are worth nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fedgraft.device.manifest import FORMAT_VERSION, GOLDEN, MANIFEST, MODEL, SIGNATURE, canonical
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.bundle_writer import (
    Contents,
    class_files,
    file_records,
    golden_file,
    golden_image,
    preprocessor_file,
)
from fedgraft.edge_export.signing import signature_file

DIM = 3
COLOURS = ("red", "green", "blue")
_SIDE = 8
_PREPROCESSOR = {
    "do_resize": True, "size": {"height": _SIDE, "width": _SIDE}, "resample": 2, "do_center_crop": False,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False,
}  # fmt: skip
_OPSET, _IR_VERSION = 18, 9


def encoder(seed: int = 0) -> bytes:
    """model.onnx: pixels (B, 3, 8, 8) to the mean of each colour, turned by a matrix of the seed, of unit norm."""
    turn = np.eye(DIM) + 0.05 * np.random.default_rng(seed).normal(size=(DIM, DIM))
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Add", ["flat", "little"], ["positive"]),
        helper.make_node("MatMul", ["positive", "turn"], ["turned"]),
        helper.make_node("LpNormalization", ["turned"], ["embedding"], axis=1, p=2),
    ]
    constants = {"turn": turn, "little": np.full(1, 1e-3)}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def bundle_contents(
    seed: int = 0, labels: Sequence[str] = COLOURS, features: NDArray[np.float32] | None = None
) -> Contents:
    """Every file of a bundle except manifest and signature."""
    model, image = encoder(seed), golden_image()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    pixels = Preprocessing.from_config(_PREPROCESSOR).pixels(Image.fromarray(image))
    embedding = np.asarray(session.run(None, {"pixels": pixels[None]})[0][0], np.float32)
    return {
        MODEL: model,
        **golden_file(image, embedding),
        **preprocessor_file(_PREPROCESSOR),
        **bank_contents(labels, features),
    }


def bank_contents(labels: Sequence[str] = COLOURS, features: NDArray[np.float32] | None = None) -> Contents:
    """The files of a class bank alone; by default a class is a colour, and further ones are mixtures."""
    if features is None:
        rows = np.random.default_rng(len(labels)).uniform(0, 1, (len(labels), DIM))
        rows[: len(COLOURS)] = np.eye(DIM)[: len(labels)]
        features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return class_files(labels, features, 10.0)


def signed(
    contents: Mapping[str, bytes],
    version: int,
    key: Ed25519PrivateKey,
    encoder_digest: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Contents:
    """The contents with manifest and signature: a bundle, or a class bank alone if an encoder is named.

    Args:
        encoder_digest: SHA-256 of the model that a class bank alone is for.
        changes: entries of the manifest to replace.
    """
    files = {name: record.model_dump() for name, record in file_records(dict(contents)).items()}
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": "bundle" if encoder_digest is None else "classes",
        "version": version,
        "encoder": files[MODEL]["sha256"] if encoder_digest is None else encoder_digest,
        "dim": DIM,
        "calibration": {"temperature": 1.0, "unknown_below": 0.4},
        "golden": {"min_cosine": 0.99} if GOLDEN in contents else None,
        "files": files,
        **(changes or {}),
    }
    text = canonical(manifest)
    return {**contents, MANIFEST: text, SIGNATURE: signature_file(key, text)}


def write_files(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write the files of a bundle into a new folder."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
