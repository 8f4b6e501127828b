"""One target of an export: a runtime, its files in the bundle, and what it cannot do.

model.onnx is in every bundle, for fedgraft's own device. A target adds the same tower in its own format, which passes
the same parity gate, in its own runtime, before anything is signed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedgraft.core.errors import UserError

FloatArray = NDArray[np.float32]
Contents = dict[str, bytes]


@dataclass(frozen=True)
class Tower:
    """An image tower, ready to be converted.

    Attributes:
        vision: in evaluation mode, from pixels to `embedding`.
        onnx: the content of model.onnx, in its number format.
        size: (height, width) of images in pixels.
    """

    vision: nn.Module
    onnx: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        name: also of its folder in the bundle, and of fedgraft's extra that installs it.
        package: what that extra installs, by its name for `import`.
        convert: from a tower to files by name.
        embed: from those files and pixels (n, 3, height, width) to embeddings (n, dim), image by image.
        refused: a reason for each number format that it cannot hold.
    """

    name: str
    description: str
    package: str
    convert: Callable[[Tower], Contents]
    embed: Callable[[Mapping[str, bytes], FloatArray], FloatArray]
    refused: Mapping[str, str]

    def require(self, number_format: str) -> None:
        """Raise UserError if its library is not installed, or if it cannot hold a number format."""
        if number_format in self.refused:
            raise UserError(
                f"The target {self.name} cannot take --quantize {number_format}: {self.refused[number_format]}."
            )
        if find_spec(self.package) is None:
            raise UserError(f'The target {self.name} needs its library: pip install "fedgraft[{self.name}]".')

    def files_of(self, tower: Tower) -> Contents:
        """A tower's files by name; raises UserError if the library cannot convert it."""
        try:
            return self.convert(tower)
        except Exception as error:  # converters have no common error class
            raise UserError(
                f"The target {self.name} cannot convert this image tower: {_reason(error)}. Leave it out of --target; "
                "model.onnx runs without it."
            ) from error


def _reason(error: BaseException) -> str:
    """The first line of what an error was raised from first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
