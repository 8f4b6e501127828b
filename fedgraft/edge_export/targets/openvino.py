"""OpenVINO's intermediate representation, made from model.onnx: openvino/model.xml and its weights, model.bin."""

import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.edge_export.onnx_model import silence
from fedgraft.edge_export.targets.target import Contents, FloatArray, Target, Tower

_GRAPH, _WEIGHTS = "openvino/model.xml", "openvino/model.bin"


def _openvino() -> Any:
    """The library without its telemetry, which reports every import: without that package it has a stand-in."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _convert(tower: Tower) -> Contents:
    openvino = _openvino()
    with silence(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(openvino.convert_model(io.BytesIO(tower.onnx)), path, compress_to_fp16=False)
        return {_GRAPH: path.read_bytes(), _WEIGHTS: path.with_suffix(".bin").read_bytes()}


def _embed(files: Mapping[str, bytes], pixels: FloatArray) -> FloatArray:
    """In float32: by default OpenVINO takes bfloat16 where a processor has it."""
    openvino = _openvino()
    core = openvino.Core()
    model = core.read_model(model=files[_GRAPH], weights=files[_WEIGHTS])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    output = compiled.output("embedding")
    return np.concatenate([np.asarray(compiled({"pixels": image[None]})[output]) for image in pixels])


TARGET = Target(
    name="openvino",
    description="OpenVINO IR for Intel processors and their graphics",
    package="openvino",
    convert=_convert,
    embed=_embed,
    refused={"int8": "its converter turns dynamic quantization back into float32 weights; int8-static stays int8"},
)
