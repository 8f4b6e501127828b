"""Speed and size of a bundle on this machine."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.device.manifest import MODEL
from fedgraft.device.predictor import Predictor
from fedgraft.device.providers import CPU

_WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """Milliseconds per image are from pixels in memory to the prediction.

    Attributes:
        load_ms: from the bundle on disk to the first prediction.
        memory_mb: peak memory of this process; 0 where the system does not report it.
    """

    images: int
    threads: int
    load_ms: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    preprocessing_ms: float
    memory_mb: float
    model_mb: float
    bundle_mb: float


def bench(
    path: Path, images: int = 50, threads: int | None = None, spinning: bool = True, provider: str = CPU
) -> Measured:
    """Repeatedly classify a random image of twice the encoder's input size.

    Raises:
        BundleError: the bundle cannot be used.
        DeviceError: there is no such provider here.
    """
    began = time.perf_counter()
    predictor = Predictor(path, threads=threads, spinning=spinning, remember=False, provider=provider)
    side = 2 * max(predictor.preprocessing.pixels(Image.new("RGB", (64, 64))).shape)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    predictor.predict(image)
    load = time.perf_counter() - began
    for _ in range(_WARM_UP):
        predictor.predict(image)
    preparing, whole = [], []
    for _ in range(max(1, images)):
        began = time.perf_counter()
        predictor.preprocessing.pixels(image)
        between = time.perf_counter()
        predictor.predict(image)
        preparing.append(1000 * (between - began))
        whole.append(1000 * (time.perf_counter() - between))
    median, p90, p99 = (float(value) for value in np.percentile(whole, (50, 90, 99)))
    files = predictor.bundle.manifest.files
    return Measured(
        images=len(whole),
        threads=threads or os.cpu_count() or 1,
        load_ms=1000 * load,
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        preprocessing_ms=float(np.median(preparing)),
        memory_mb=_peak_memory(),
        model_mb=files[MODEL].bytes / 1e6,
        bundle_mb=sum(entry.bytes for entry in files.values()) / 1e6,
    )


def _peak_memory() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
