"""A low-rank adapter in a folder as PEFT saves one: `PeftModel.from_pretrained(model, folder)` opens it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from fedgraft.core.files import write_bytes, write_text


class PeftFactors(NamedTuple):
    """A (rank, in) and B (out, rank) of each map, whose product PEFT scales by alpha / rank, and DoRA's magnitudes."""

    rank: int
    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]
    magnitudes: Mapping[str, Tensor] = MappingProxyType({})


def save_as_peft(adapter: PeftFactors, folder: Path, base_model: str) -> None:
    """Write adapter_config.json, which names the base model (Hugging Face ID or folder), and the safetensors file."""
    from peft import LoraConfig

    rank, alpha, factors, magnitudes = adapter
    tensors = {}
    for name, (right, left) in factors.items():
        for factor, value in (("lora_A", right), ("lora_B", left)):
            tensors[f"base_model.model.{name}.{factor}.weight"] = value.cpu().contiguous()
    for name, value in magnitudes.items():
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = value.cpu().contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(factors),
        base_model_name_or_path=base_model,
        use_dora=bool(magnitudes),
        inference_mode=True,
    )
    settings = config.to_dict()  # type: ignore[no-untyped-call]
    write_bytes(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    write_text(folder / "adapter_config.json", json.dumps(settings, default=_plain, indent=2, sort_keys=True))


def _plain(value: Any) -> Any:
    """Sets as sorted lists; other objects of PEFT's by name."""
    return sorted(value) if isinstance(value, set) else str(value)
