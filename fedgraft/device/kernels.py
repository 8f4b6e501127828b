"""Which 8-bit kernels onnxruntime has on this processor: whether its products can saturate is a matter of these."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8"})
_X86 = frozenset({"x86_64", "amd64", "i686", "i386"})


def integer_kernels() -> str:
    """A few words: the architecture, and for x86 whether it has VNNI."""
    machine = platform.machine().lower()
    if machine not in _X86:
        return machine or "unknown"
    try:
        text = _CPUINFO.read_text()
    except OSError:  # not Linux
        return f"{machine}, VNNI unknown"
    return kernels_of(machine, text)


def kernels_of(machine: str, cpuinfo: str) -> str:
    """The same for the text of /proc/cpuinfo."""
    flags = next((line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return f"{machine} {'with' if _DOT_PRODUCTS & set(flags) else 'without'} VNNI"
