"""Train the embedded backbone `mini` from nothing but procedural images: `python -m tools.mini.pretrain`.

Contrastive pretraining as in CLIP (Radford et al. 2021, section 2.3) with one change: a caption that names only
some attributes is true of several images of a batch, and every true pair is a positive. Auxiliary heads for
character, shape, colour and texture read the image tower's pooled output during training and are thrown away.

The fonts come from free Debian packages, listed in fonts.txt. Training is seeded, writes a checkpoint every
`--checkpoint-every` steps and continues from it when started again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fedgraft.backbones.mini.corpus import ATTRIBUTES, Batch, Corpus
from fedgraft.data.worlds import glyphs, shapes
from tools.mini.captions import font_atlas, font_files, matches, vocabulary_text

MAX_TOKENS = 64
_START, _END = "<|startoftext|>", "<|endoftext|>"
_HEADS = {
    "character": len(glyphs.CHARACTER_NAMES),
    "shape": len(shapes.SHAPES),
    "colour": len(shapes.COLOURS) + 2,
    "texture": len(shapes.TEXTURES),
}


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's format in which every word of the corpus is one token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    splitters = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word for caption in vocabulary_text() for word in caption.split()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = alphabet + [f"{character}</w>" for character in alphabet]
    tokens += [joined for joined in dict.fromkeys("".join(merge) for merge in merges) if joined not in set(tokens)]
    tokens += [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    clip = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    clip.save_pretrained(folder)
    return clip


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained backbone: image tower 4 x 144, text tower 2 x 128, 48 pixels in patches of 8."""
    start, end = tokenizer.convert_tokens_to_ids([_START, _END])
    vision = {"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        vision_config={**vision, "image_size": shapes.IMAGE_SIZE, "patch_size": 8},
        text_config={
            **text,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


class Pretraining(nn.Module):
    """The backbone with its auxiliary heads and the loss."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        width = clip.config.vision_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in _HEADS.items()})

    def forward(
        self, images: Tensor, tokens: Tensor, mask: Tensor, matches: Tensor, shown: Tensor
    ) -> dict[str, Tensor]:
        """The losses of one batch, and the share of images whose best caption is true."""
        pooled = self.clip.vision_model(pixel_values=images).pooler_output
        image = F.normalize(self.clip.visual_projection(pooled), dim=-1)
        text = self.clip.text_model(input_ids=tokens, attention_mask=mask).pooler_output
        text = F.normalize(self.clip.text_projection(text), dim=-1)
        logits = image @ text.T * self.clip.logit_scale.exp().clamp(max=100)
        target = matches.float()
        rows = target / target.sum(1, keepdim=True)
        columns = target / target.sum(0, keepdim=True)
        to_text = -(rows * logits.log_softmax(1)).sum(1).mean()
        to_image = -(columns * logits.log_softmax(0)).sum(0).mean()
        contrastive = (to_text + to_image) / 2
        auxiliary = logits.new_zeros(())
        for name, head in self.heads.items():
            labels = shown[:, ATTRIBUTES.index(name)]
            auxiliary = auxiliary + F.cross_entropy(head(pooled), labels, ignore_index=-1)
        hit = matches.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return {"contrastive": contrastive, "auxiliary": auxiliary, "hit": hit}


class _Steps(Dataset[Batch]):
    def __init__(self, corpus: Corpus, steps: int) -> None:
        self.corpus, self.steps = corpus, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.corpus.batch(step)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau, and a linear descent over the last 40 % of the steps."""
    return peak * min(1.0, (step + 1) / 200, max(0.0, (steps - step) / (0.4 * steps)))


def _save(folder: Path, model: Pretraining, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    scratch = folder / "checkpoint.tmp"
    save_file(tensors, scratch, metadata={"step": str(step)})
    scratch.replace(folder / "checkpoint.safetensors")


def _restore(folder: Path, model: Pretraining, optimizer: torch.optim.Optimizer) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        keys = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[parameter] = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
    return int(tensors["optimizer.step.clip.logit_scale"].item())


def pretrain(
    work: Path, fonts: Path, steps: int, batch_size: int, seed: int, peak: float, checkpoint_every: int
) -> Path:
    """Train, or continue, and return the folder of the finished backbone."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    atlas_file = work / "atlas.npy"
    if not atlas_file.exists():
        np.save(atlas_file, font_atlas(font_files(fonts)))
    corpus = Corpus(np.load(atlas_file), seed, batch_size)
    tokenizer = train_tokenizer(work / "tokenizer")
    model = Pretraining(build_model(tokenizer))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    first = _restore(work, model, optimizer)
    size = sum(parameter.numel() for parameter in model.clip.parameters())
    print(f"{len(corpus.atlas)} fonts, {size:,} parameters, from step {first}", flush=True)

    todo = range(first, steps)
    loader = DataLoader(_Steps(corpus, steps), batch_size=None, sampler=todo, num_workers=1, prefetch_factor=4)
    began = time.monotonic()
    for step, batch in zip(todo, loader, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        tokens = tokenizer(batch.captions, padding=True, return_tensors="pt")
        losses = model(batch.images, tokens["input_ids"], tokens["attention_mask"], matches(batch), batch.shown)
        optimizer.zero_grad(set_to_none=True)
        (losses["contrastive"] + 0.5 * losses["auxiliary"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            rate = (step + 1 - first) * batch_size / (time.monotonic() - began)
            figures = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step + 1}/{steps}  {figures}  {rate:.0f} images/s", flush=True)
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            _save(work, model, optimizer, step + 1)
    return finish(work, model.clip, tokenizer)


def finish(work: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> Path:
    """Write the backbone in Hugging Face format."""
    out = work / "weights"
    clip.save_pretrained(out)
    tokenizer.save_pretrained(out)
    size = shapes.IMAGE_SIZE
    CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(out)
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("mini-pretraining"), help="checkpoints and the result")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"), help="folder that holds the font files")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    args = parser.parse_args()
    out = pretrain(args.work, args.fonts, args.steps, args.batch_size, args.seed, args.lr, args.checkpoint_every)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
