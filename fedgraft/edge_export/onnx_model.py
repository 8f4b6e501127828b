"""An image tower as one ONNX file: pixels (batch, 3, height, width) to `embedding` (batch, dim).

Attention is written out, which gives a smaller graph than the fused operator.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx
import onnx.version_converter
import torch
from torch import nn

from fedgraft.core.errors import UserError

OPSET = 18
_EMPTY_AXES_SINCE = 18
_LARGEST_BATCH = 4096
_PROTOBUF_LIMIT = 2**31
_RAW_OUTPUT = "unit_norm"


def export_onnx(
    vision: nn.Module, size: tuple[int, int], metadata: Mapping[str, str], opset: int = OPSET
) -> onnx.ModelProto:
    """Trace a tower in evaluation mode into a checked model that holds no paths of this machine.

    Args:
        vision: whose `forward` takes `pixels`.
        size: (height, width) of the images in pixels.
        metadata: kept in the model's own properties.
        opset: the version of ONNX's operators; the model has the oldest IR version that allows it.

    Raises:
        UserError: the weights do not fit into one file, or the tower has operators that the opset cannot express.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in vision.parameters())
    if weights >= _PROTOBUF_LIMIT:
        raise UserError(f"The image tower has {weights / 1e9:.1f} GB of weights; one ONNX file holds less than 2.1 GB.")
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with silence():
        program = torch.onnx.export(
            vision,
            (torch.zeros(2, 3, *size),),
            dynamo=True,
            opset_version=max(opset, OPSET),
            dynamic_shapes={"pixels": {0: batch}},
            input_names=["pixels"],
            output_names=[_RAW_OUTPUT],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = _of_opset(program.model_proto, opset)
    _strip(model.graph)
    _name_output(model.graph)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    return model


def _of_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in an older or newer operator set than it was traced in; the tracer leaves one that it cannot make."""
    if _opset(model) != opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except (RuntimeError, onnx.version_converter.ConvertError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"This image tower cannot be written in opset {opset}: {reason}.") from error
    if opset < _EMPTY_AXES_SINCE:  # an attribute that says what no axes mean stays behind, where there are axes
        for node in model.graph.node:
            kept = [each for each in node.attribute if each.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if not entry.domain)


def _strip(graph: onnx.GraphProto) -> None:
    """Remove what tells where and how the model was traced."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _name_output(graph: onnx.GraphProto) -> None:
    """Name the output `embedding`, which the exporter already uses for an inner value."""
    names = {"embedding": "embedded_positions", _RAW_OUTPUT: "embedding"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress what exporter and quantizers print, warn and log, none of which helps a user."""
    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logged)
