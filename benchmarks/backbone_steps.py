"""Seconds of a PromptFL step on the text towers of published backbones: `python -m benchmarks.backbone_steps`.

A step is the class features of 50 classes with 16 context vectors (4 where a text has 16 positions in all), the logits
of a batch of 32 cached image features, and the gradient of the context: all that a client does for a batch, since a
frozen image tower runs once for every image. The text towers have their published sizes and random weights; the
vocabulary is small, which costs no step anything, and so is the image tower. Models with equal text towers share a
measurement. Medians, in float32, go to benchmarks/backbone_steps.json, from which `benchmarks.backbone_table` takes
them; what is there is not measured again.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.backbone_table import STEPS, model_of, recognizing
from benchmarks.published_backbones import Published, published
from benchmarks.step import class_names
from fedgraft.backbones import load_backbone
from fedgraft.backbones.checkpoints.quiet import quietly
from fedgraft.backbones.loading import located
from fedgraft.methods.promptfl import METHOD
from fedgraft.methods.vocabulary import Vocabulary

CLASSES, BATCH, CONTEXT, SHORT_CONTEXT = 50, 32, 16, 4
_OF_THE_VOCABULARY = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "projection_size",
    "type_vocab_size",
)
_TOKENIZERS = ("tokenizer*", "vocab*", "merges*", "special_tokens*")


def write_folder(entry: Published, folder: Path) -> None:
    """A random model with the text tower of a published one, and the rest of its family's sample."""
    (folder / "config.json").write_text(json.dumps(entry.config))
    family = recognizing(folder)
    assert family is not None
    assert family.sample is not None
    family.sample(folder)
    if entry.config["text_config"].get("model_type") == "clip_text_model":
        _write_words_of_clip(folder)
    config = json.loads((folder / "config.json").read_text())
    own, theirs = config["text_config"], entry.config["text_config"]
    config["text_config"] = {**theirs, **{key: own[key] for key in _OF_THE_VOCABULARY if key in own}}
    if "projection_dim" in entry.config:
        config["projection_dim"] = entry.config["projection_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.manual_seed(0)
    with quietly():
        model = model_of(config, folder)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")


def _write_words_of_clip(folder: Path) -> None:
    """The tokenizer of the embedded mini, and a configuration that fits it."""
    mini = located("mini").folder
    for pattern in _TOKENIZERS:
        for old in folder.glob(pattern):
            old.unlink()
        for file in mini.glob(pattern):
            (folder / file.name).write_bytes(file.read_bytes())
    config, words = (json.loads((path / "config.json").read_text()) for path in (folder, mini))
    config["text_config"] = {
        key: words["text_config"][key] for key in _OF_THE_VOCABULARY if key in words["text_config"]
    }
    (folder / "config.json").write_text(json.dumps(config))


def step_seconds(folder: Path, repeat: int) -> float:
    """The median of some steps."""
    backbone = load_backbone(str(folder))
    everything = tuple(range(CLASSES))
    vocabulary = Vocabulary(backbone, class_names(CLASSES), ("a photo of a {}.",))
    context = CONTEXT if backbone.text.max_tokens > 2 * CONTEXT else SHORT_CONTEXT
    options = METHOD.parse_options({"n_ctx": context})
    adapter = METHOD.adapter(vocabulary, options, torch.Generator().manual_seed(0))
    images = torch.nn.functional.normalize(torch.randn(BATCH, backbone.dim), dim=-1)
    labels = torch.randint(CLASSES, (BATCH,))
    found = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        adapter.zero_grad()
        adapter.loss(images, labels, everything).backward()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def key(config: dict[str, Any]) -> str:
    """Equal for models whose text towers cost the same."""
    text = {name: value for name, value in config["text_config"].items() if name not in _OF_THE_VOCABULARY}
    return json.dumps([config["model_type"], config.get("projection_dim"), text], sort_keys=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="", help="of models whose name has this in it")
    args = parser.parse_args()
    seconds: dict[str, float] = json.loads(STEPS.read_text()) if STEPS.exists() else {}
    measured = {key(entry.config): seconds[entry.hub] for entry in published() if entry.hub in seconds}
    for entry in published():
        if args.only not in entry.name or entry.hub in seconds:
            continue
        if key(entry.config) not in measured:
            with tempfile.TemporaryDirectory() as folder:
                write_folder(entry, Path(folder))
                measured[key(entry.config)] = round(step_seconds(Path(folder), args.repeat), 3)
            gc.collect()
            print(f"{entry.name}: {measured[key(entry.config)]:.3f} s", flush=True)
        seconds[entry.hub] = measured[key(entry.config)]
        STEPS.write_text(json.dumps(seconds, indent=2) + "\n")


if __name__ == "__main__":
    main()
