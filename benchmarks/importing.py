"""How much memory `fedgraft backbones import` takes: a whole CLIP ViT-B/16 in every layout, each in a fresh process.

`python -m benchmarks.importing`; needs open_clip_torch (`make test` installs it). Weights are random.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fedgraft.backbones.checkpoints.importing import import_checkpoint
from fedgraft.backbones.timm.importing import without_torchvision

LIMIT = 2.2
"""Peak memory over the size of the checkpoint, at most."""
_MEASURED = """
import sys
from pathlib import Path
from fedgraft.cli.main import main
sys.argv = sys.argv[1:]
try:
    main()
finally:
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""
"""The command, and then the most memory that its process held; what `wait` tells would count this process too."""
CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def checkpoints(root: Path) -> dict[str, Path]:
    """The same model in every layout that is imported, by what it is called."""
    with without_torchvision():
        import open_clip
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    example = (torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int64))
    model.attn_mask, mask = None, model._buffers.pop("attn_mask")
    vars(model)["attn_mask"] = mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, example, check_trace=False, strict=False), root / "ViT-B-16.pt")
    weights = model.state_dict()
    for name in ("openclip-bin", "openclip-safetensors", "huggingface-bin", "huggingface-shards"):
        (root / name).mkdir()
        if name.startswith("openclip"):
            content = json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}})
            (root / name / "open_clip_config.json").write_text(content)
    torch.save(weights, root / "openclip-bin" / "open_clip_pytorch_model.bin")
    save_file(weights, root / "openclip-safetensors" / "open_clip_model.safetensors")
    torch.save({"epoch": 1, "state_dict": {f"module.{n}": t for n, t in weights.items()}}, root / "epoch_1.pt")
    _hugging_face(root)
    return {
        "OpenAI's archive": root / "ViT-B-16.pt",
        "training checkpoint": root / "epoch_1.pt",
        "OpenCLIP, pickled": root / "openclip-bin",
        "OpenCLIP, safetensors": root / "openclip-safetensors",
        "Hugging Face, pickled": root / "huggingface-bin",
        "Hugging Face, four shards": root / "huggingface-shards",
    }


def _hugging_face(root: Path) -> None:
    made = import_checkpoint(str(root / "openclip-bin"), root / "huggingface").out
    weights = load_file(made / "model.safetensors")
    for name in ("huggingface-bin", "huggingface-shards"):
        for file in made.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, root / name / file.name)
    torch.save(weights, root / "huggingface-bin" / "pytorch_model.bin")
    places = {name: f"pytorch_model-{number % 4 + 1:05d}-of-00004.bin" for number, name in enumerate(weights)}
    for file in set(places.values()):
        part = {name: weights[name].clone() for name, place in places.items() if place == file}
        torch.save(part, root / "huggingface-shards" / file)
    (root / "huggingface-shards" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def peak(source: Path, out: Path) -> tuple[int, int]:
    """Bytes of weights, and the most memory that importing them took, in bytes."""
    arguments = ["fedgraft", "backbones", "import", str(source), "--out", str(out), "--json"]
    extra = ["--activation", "quick_gelu"] if source.name == "epoch_1.pt" else []
    done = subprocess.run([sys.executable, "-c", _MEASURED, *arguments, *extra], check=True, capture_output=True)
    shutil.rmtree(out)
    return int(json.loads(done.stdout)["bytes"]), int(done.stderr.split()[-2]) * 1024


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/importing.json"))
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, source in checkpoints(root).items():
            size, most = peak(source, root / "out")
            figures[name] = {"bytes": size, "peak_bytes": most, "ratio": most / size}
            print(f"{name:<28} {size / 1e6:6.1f} MB   peak {most / 1e6:7.1f} MB   {most / size:.2f} times", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    if worst := [name for name, figure in figures.items() if figure["ratio"] >= LIMIT]:
        raise SystemExit(f"At least {LIMIT} times the checkpoint: {', '.join(worst)}.")


if __name__ == "__main__":
    main()
