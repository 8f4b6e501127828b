"""The execution providers of onnxruntime: what computes a model, chosen on the device."""

import onnxruntime

from fedgraft.device.errors import DeviceError

CPU = "cpu"
_SUFFIX = "ExecutionProvider"


def find_provider(name: str) -> str:
    """onnxruntime's name of a provider.

    Args:
        name: "cpu", "cuda", "openvino", ..., or onnxruntime's own, such as "CUDAExecutionProvider".

    Raises:
        DeviceError: this installation of onnxruntime has none of that name.
    """
    available: list[str] = onnxruntime.get_available_providers()
    for found in available:
        if name.lower() in (found.lower(), found.removesuffix(_SUFFIX).lower()):
            return found
    known = ", ".join(sorted(found.removesuffix(_SUFFIX).lower() for found in available))
    raise DeviceError(
        f"There is no provider {name[:40]!r} in this installation of onnxruntime, which has: {known}. Others come with "
        "other builds of it, such as onnxruntime-gpu or onnxruntime-openvino."
    )


def in_order(provider: str) -> list[str]:
    """A provider, and the CPU's for operators that it lacks."""
    cpu = f"CPU{_SUFFIX}"
    return [provider] if provider == cpu else [provider, cpu]
