"""The targets by name, and reading a list of them."""

from fedgraft.core.errors import unknown
from fedgraft.edge_export.targets import executorch, openvino
from fedgraft.edge_export.targets.target import Target

ONNX = "onnx"
"""In every bundle, so never a target of its own."""
TARGETS = {target.name: target for target in (openvino.TARGET, executorch.TARGET)}


def find_targets(names: str, number_format: str) -> tuple[Target, ...]:
    """The targets beside ONNX in a list such as "onnx,openvino".

    Raises:
        UserError: one of them does not exist, is not installed, or cannot hold the number format.
    """
    wanted = dict.fromkeys(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in (ONNX, *TARGETS):
            raise unknown("target", name, (ONNX, *TARGETS))
    chosen = tuple(TARGETS[name] for name in wanted if name != ONNX)
    for target in chosen:
        target.require(number_format)
    return chosen
