"""ExecuTorch's program for phones and microcontrollers, made from the torch tower: executorch/model.pte.

Lowered to XNNPACK, for one image at a time.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from fedgraft.edge_export.onnx_model import silence
from fedgraft.edge_export.targets.target import Contents, FloatArray, Target, Tower

_PROGRAM = "executorch/model.pte"
_FLOAT32 = "a program is made from the torch tower, in float32, and its own quantizer is not part of this"


def _convert(tower: Tower) -> Contents:
    with silence():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        vision = deepcopy(tower.vision)
        convert_conv2d_weight_memory_format(vision, torch.contiguous_format)  # XNNPACK's passes know no other layout
        program = torch.export.export(vision, (torch.zeros(1, 3, *tower.size),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return {_PROGRAM: bytes(lowered.to_executorch().buffer)}


def _embed(files: Mapping[str, bytes], pixels: FloatArray) -> FloatArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(files[_PROGRAM]).load_method("forward")
        return np.concatenate([method.execute([torch.from_numpy(image[None])])[0].numpy() for image in pixels])


TARGET = Target(
    name="executorch",
    description="ExecuTorch program (XNNPACK, float32) for phones",
    package="executorch",
    convert=_convert,
    embed=_embed,
    refused={"int8": _FLOAT32, "int8-static": _FLOAT32, "fp16": _FLOAT32},
)
