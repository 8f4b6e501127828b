"""Runs inside gdb: onnxruntime finds a processor without AVX-512 and VNNI, and takes its kernels for AVX2.

onnxruntime asks the processor by `cpuid` and has no option. A breakpoint before each such instruction of its library
notes what is asked for, and one behind it clears the bits. All this happens while onnxruntime is loaded and makes its
first session, so the times after it are those of the kernels. gdb ends with 1 if nothing was asked.
"""

import subprocess
from typing import Any

import gdb  # type: ignore[import-not-found]

LIBRARY = "onnxruntime_pybind11_state"
FEATURES = 7
AVX512_AND_VNNI = {
    (FEATURES, 0): {
        "rbx": [16, 17, 21, 26, 27, 28, 30, 31],  # F, DQ, IFMA, PF, ER, CD, BW, VL
        "rcx": [1, 6, 11, 12, 14],  # VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
        "rdx": [2, 3, 8, 22, 23, 24, 25],  # 4VNNIW, 4FMAPS, VP2INTERSECT, AMX and FP16
    },
    (FEATURES, 1): {"rax": [4, 5, 23], "rdx": [4, 5, 10]},  # VNNI and BF16 of AVX, IFMA; 8 and 16 bits of AVX
}
asked: dict[int, tuple[int, int]] = {}
masked: list[tuple[int, int]] = []


def register(name: str) -> int:
    """Its value, of 32 or 64 bits by its name, as an unsigned integer."""
    return int(gdb.parse_and_eval(f"(unsigned long)${name}")) & (2**32 - 1)


class Before(gdb.Breakpoint):  # type: ignore[misc]
    """Notes the question."""

    def stop(self) -> bool:
        """Never."""
        asked[gdb.selected_thread().num] = register("rax"), register("rcx")
        return False


class Behind(gdb.Breakpoint):  # type: ignore[misc]
    """Clears bits of the answer."""

    def stop(self) -> bool:
        """Never."""
        question = asked.get(gdb.selected_thread().num, (0, 0))
        for name, bits in AVX512_AND_VNNI.get(question, {}).items():
            gdb.execute(f"set ${name} = {register(name) & ~sum(1 << bit for bit in bits)}")
            masked.append(question)
        return False


def loaded(event: Any) -> None:
    """Sets the breakpoints when the library is mapped."""
    path = event.new_objfile.filename
    if LIBRARY not in path:
        return
    mappings = gdb.execute("info proc mappings", to_string=True).splitlines()
    base = next(int(line.split()[0], 16) for line in mappings if LIBRARY in line)
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    ).stdout
    for line in listing.splitlines():
        if line.rstrip().endswith("cpuid"):
            address = base + int(line.split(":")[0], 16)
            Before(f"*{address:#x}", internal=True)
            Behind(f"*{address + 2:#x}", internal=True)  # cpuid has two bytes


def ended(_: Any) -> None:
    """Fails unless something was masked."""
    if not masked:
        gdb.execute("quit 1")


gdb.events.new_objfile.connect(loaded)
gdb.events.exited.connect(ended)
