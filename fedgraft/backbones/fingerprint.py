"""What identifies a backbone and its preprocessing: SHA-256 over configuration, tokenizer and weights."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


def fingerprint(config: Mapping[str, Any], tokenizer: Any, weights: Mapping[str, Tensor]) -> str:
    """Of a model as it is on disk, in hexadecimal, wherever its files are and whichever version saved them.

    Args:
        config: plain values; what differs from version to version is left out.
        tokenizer: of transformers, a fast one.
        weights: on the CPU, in the precision of the files.
    """
    digest = hashlib.sha256()
    digest.update(_canonical(_stable(config)).encode())
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    digest.update(_canonical({**words, "padding": None, "truncation": None}).encode())
    for key, tensor in sorted(weights.items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values: Any = tensor.contiguous().flatten().numpy()
        digest.update(memoryview(values).cast("B"))
    return digest.hexdigest()


def preprocessing_digest(config: Mapping[str, Any]) -> str:
    """Of everything that decides pixel values, in hexadecimal."""
    return hashlib.sha256(_canonical(config).encode()).hexdigest()


def _stable(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE_KEYS}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
