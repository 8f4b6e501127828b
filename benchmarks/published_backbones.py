"""Published backbones as facts: where each is, and its configuration in as few numbers as tell it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedgraft.backbones.checkpoints.clip_names import clip_config
from fedgraft.backbones.checkpoints.dual_names import MODEL_TYPE

IMPORTED, OPENED = "import", "open"


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: as its authors call it.
        hub: its Hugging Face ID.
        config: the `config.json` of its folder, after an import where one is needed.
        way: "open" where `--backbone ID` suffices if the repository has safetensors, "import" where it never does.
        openclip: the name of the same configuration in OpenCLIP, if it has one.
    """

    name: str
    hub: str
    config: dict[str, Any]
    way: str = OPENED
    openclip: str | None = None


_VISION = {
    "B/32": {"width": 768, "layers": 12, "patch_size": 32},
    "B/16": {"width": 768, "layers": 12, "patch_size": 16},
    "L/14": {"width": 1024, "layers": 24, "patch_size": 14},
    "H/14": {"width": 1280, "layers": 32, "patch_size": 14, "head_width": 80},
    "g/14": {"width": 1408, "layers": 40, "patch_size": 14, "head_width": 88, "mlp_ratio": 4.3637},
    "bigG/14": {"width": 1664, "layers": 48, "patch_size": 14, "head_width": 104, "mlp_ratio": 4.9231},
}
"""Image towers of CLIP, with OpenCLIP's keys."""
_TEXT = {
    "B/32": (512, 512, 8, 12), "B/16": (512, 512, 8, 12), "L/14": (768, 768, 12, 12),
    "H/14": (1024, 1024, 16, 24), "g/14": (1024, 1024, 16, 24), "bigG/14": (1280, 1280, 20, 32),
}  # fmt: skip
"""Joint dimension, and width, heads and layers of the text tower beside each."""
_SIGLIP_VISION = {
    "B": (768, 12, 12, 3072), "L": (1024, 24, 16, 4096), "So400m": (1152, 27, 16, 4304), "gopt": (1536, 40, 16, 6144)
}  # fmt: skip
"""Width, layers, heads and inner width of SigLIP's image towers; the text tower is the same, except beside gopt."""


def published() -> Iterator[Published]:
    """All of them, family after family."""
    yield from _clip()
    yield from _siglip()
    yield from _openclip()
    yield from _chinese_clip()
    yield from _align()


def _clip() -> Iterator[Published]:
    for size, hub, pixels in (
        ("B/32", "base-patch32", 224), ("B/16", "base-patch16", 224),
        ("L/14", "large-patch14", 224), ("L/14", "large-patch14-336", 336),
    ):  # fmt: skip
        yield _clip_of("CLIP", f"openai/clip-vit-{hub}", size, pixels, quick=True)
    for size, data in (
        ("B/32", "laion2B-s34B-b79K"), ("B/16", "laion2B-s34B-b88K"), ("L/14", "laion2B-s32B-b82K"),
        ("H/14", "laion2B-s32B-b79K"), ("g/14", "laion2B-s12B-b42K"), ("bigG/14", "laion2B-39B-b160k"),
    ):  # fmt: skip
        yield _clip_of("OpenCLIP LAION-2B", f"laion/CLIP-ViT-{size.replace('/', '-')}-{data}", size)
    for size in ("B/32", "B/16", "L/14"):
        hub = f"laion/CLIP-ViT-{size.replace('/', '-')}-DataComp.XL-s13B-b90K"
        yield _clip_of("DataComp-XL", hub, size)
    for size, name in (("B/32", "b32-400m"), ("B/16", "b16-fullcc2.5b"), ("L/14", "l14-fullcc2.5b"),
                       ("H/14", "h14-fullcc2.5b")):  # fmt: skip
        yield _clip_of("MetaCLIP", f"facebook/metaclip-{name}", size, quick=True)
    for size, hub, pixels in (("B/16", "DFN2B-CLIP-ViT-B-16", 224), ("L/14", "DFN2B-CLIP-ViT-L-14", 224),
                              ("H/14", "DFN5B-CLIP-ViT-H-14-378", 378)):  # fmt: skip
        yield _clip_of("DFN", f"apple/{hub}", size, pixels, quick=True, way=IMPORTED)
    yield _metaclip_2()


def _clip_of(title: str, hub: str, size: str, pixels: int = 224, quick: bool = False, way: str = OPENED) -> Published:
    dim, width, heads, layers = _TEXT[size]
    model = {
        "embed_dim": dim,
        "quick_gelu": quick,
        "vision_cfg": {**_VISION[size], "image_size": pixels},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
    }
    known = f"ViT-{size.replace('/', '-')}{'' if pixels == 224 else f'-{pixels}'}{'-quickgelu' if quick else ''}"
    name = f"{title} ViT-{size}{'' if pixels == 224 else f', {pixels} px'}"
    return Published(name, hub, clip_config(model), way, known)


def _metaclip_2() -> Published:
    """CLIP's towers with the vocabulary of XLM-V."""
    config = clip_config(
        {
            "embed_dim": 1024,
            "quick_gelu": True,
            "vision_cfg": {**_VISION["H/14"], "image_size": 224},
            "text_cfg": {"context_length": 77, "vocab_size": 901_629, "width": 1024, "heads": 16, "layers": 24},
        }
    )
    text = {**config["text_config"], "model_type": "metaclip_2_text_model", "eos_token_id": 2, "bos_token_id": 0}
    vision = {**config["vision_config"], "model_type": "metaclip_2_vision_model"}
    towers = {"text_config": {**text, "pad_token_id": 1}, "vision_config": vision}
    described = {"model_type": "metaclip_2", "projection_dim": config["projection_dim"], **towers}
    hub, known = "facebook/metaclip-2-worldwide-huge-quickgelu", "ViT-H-14-worldwide-quickgelu"
    return Published("MetaCLIP 2 ViT-H/14, multilingual", hub, described, OPENED, known)


def _siglip() -> Iterator[Published]:
    base, large, so = "base-patch16", "large-patch16", "so400m-patch14"
    for size, hub, sizes in (("B", base, (224, 256, 384, 512)), ("L", large, (256, 384)), ("So400m", so, (224, 384))):
        for pixels in sizes:
            yield _siglip_of("SigLIP", f"google/siglip-{hub}-{pixels}", size, hub, pixels, 32_000)
    yield _siglip_of("SigLIP", f"google/siglip-{base}-256-multilingual", "B", base, 256, 250_000)
    for size, hub, sizes in (
        ("B", "base-patch32", (256,)), ("B", base, (224, 256, 384, 512)), ("L", large, (256, 384, 512)),
        ("So400m", so, (224, 384)), ("So400m", "so400m-patch16", (256, 384, 512)),
        ("gopt", "giant-opt-patch16", (256, 384)),
    ):  # fmt: skip
        for pixels in sizes:
            yield _siglip_of("SigLIP 2", f"google/siglip2-{hub}-{pixels}", size, hub, pixels, 256_000)


def _siglip_of(title: str, hub: str, size: str, tower: str, pixels: int, words: int) -> Published:
    patch = int(tower.rpartition("patch")[2])
    width, layers, heads, inner = _SIGLIP_VISION[size]
    text_width, text_layers, text_heads, text_inner = _SIGLIP_VISION["So400m" if size == "gopt" else size]
    text_layers = 12 if size == "B" else text_layers
    positions = 16 if (title, tower, pixels) == ("SigLIP", "so400m-patch14", 224) else 64
    config = {
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": inner, "image_size": pixels, "patch_size": patch,
        },
        "text_config": {
            "model_type": "siglip_text_model", "hidden_size": text_width, "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads, "intermediate_size": text_inner, "vocab_size": words,
            "max_position_embeddings": positions, "projection_size": width,
        },
    }  # fmt: skip
    version = "2" if title == "SigLIP 2" else "-i18n" if words == 250_000 else ""
    stem = f"ViT-{size.upper() if size == 'So400m' else size}-{patch}-SigLIP{version}"
    known = stem if pixels == 224 else f"{stem}-{pixels}"
    language = ", multilingual" if words == 250_000 else ""
    return Published(f"{title} {size}/{patch}, {pixels} px{language}", hub, config, OPENED, known)


def _openclip() -> Iterator[Published]:
    """OpenCLIP's with image towers of timm."""
    for name, hub, tower, pool, pixels, dim, causal in (
        ("MobileCLIP-S1", "apple/MobileCLIP-S1-OpenCLIP", "fastvit_mci1", "avg", 256, 512, False),
        ("MobileCLIP-S2", "apple/MobileCLIP-S2-OpenCLIP", "fastvit_mci2", "avg", 256, 512, False),
        ("MobileCLIP-B", "apple/MobileCLIP-B-OpenCLIP", "vit_base_mci_224", "token", 224, 512, True),
        ("MobileCLIP2-S0", "timm/MobileCLIP2-S0-OpenCLIP", "fastvit_mci0", "avg", 256, 512, False),
        ("MobileCLIP2-S2", "timm/MobileCLIP2-S2-OpenCLIP", "fastvit_mci2", "avg", 256, 512, False),
        ("MobileCLIP2-S3", "timm/MobileCLIP2-S3-OpenCLIP", "fastvit_mci3", "avg", 256, 768, False),
        ("MobileCLIP2-S4", "timm/MobileCLIP2-S4-OpenCLIP", "fastvit_mci4", "avg", 256, 768, False),
        ("MobileCLIP2-B", "timm/MobileCLIP2-B-OpenCLIP", "vit_base_mci_224", "token", 224, 512, True),
        ("EVA02-B-16", "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", "eva02_base_patch16_clip_224", "token",
         224, 512, True),
        ("EVA02-L-14", "timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", "eva02_large_patch14_clip_224", "token",
         224, 768, True),
    ):  # fmt: skip
        text = {"context_length": 77, "vocab_size": 49408, "width": dim, "heads": dim // 64, "layers": 12}
        described = clip_config({"embed_dim": dim, "vision_cfg": {}, "text_cfg": text})["text_config"]
        vision = {"timm_model_name": tower, "timm_pool": pool, "timm_proj": None, "image_size": pixels}
        config = _dual(dim, vision, {**described, "causal": causal})
        yield Published(name, hub, config, IMPORTED, name)
    bert = {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2,
        "pooling": "class", "projection": "mlp", "context_length": 256,
    }  # fmt: skip
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    hub = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    yield Published("BiomedCLIP", hub, _dual(512, vision, bert), IMPORTED)


def _dual(dim: int, vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    towers = {"vision_config": {**vision, "model_type": "timm"}, "text_config": text}
    return {"model_type": MODEL_TYPE, "projection_dim": dim, "logit_bias": False, **towers}


def _chinese_clip() -> Iterator[Published]:
    for size, hub, pixels, dim in (
        ("B/16", "base-patch16", 224, 512), ("L/14", "large-patch14", 224, 768),
        ("L/14", "large-patch14-336px", 336, 768), ("H/14", "huge-patch14", 224, 1024),
    ):  # fmt: skip
        vision = _VISION[size]
        width, text_width = vision["width"], 1024 if size == "H/14" else 768
        config = {
            "model_type": "chinese_clip",
            "projection_dim": dim,
            "vision_config": {
                "model_type": "chinese_clip_vision_model", "hidden_size": width, "intermediate_size": 4 * width,
                "num_hidden_layers": vision["layers"], "num_attention_heads": width // vision.get("head_width", 64),
                "patch_size": vision["patch_size"], "image_size": pixels,
            },
            "text_config": {
                "model_type": "chinese_clip_text_model", "vocab_size": 21128, "hidden_size": text_width,
                "intermediate_size": 4 * text_width, "num_attention_heads": text_width // 64,
                "num_hidden_layers": 24 if size == "H/14" else 12, "max_position_embeddings": 512,
            },
        }  # fmt: skip
        name = f"Chinese-CLIP ViT-{size}{'' if pixels == 224 else f', {pixels} px'}"
        yield Published(name, f"OFA-Sys/chinese-clip-vit-{hub}", config)


def _align() -> Iterator[Published]:
    """The one published size is transformers' default: an EfficientNet-B7 and a BERT-base."""
    towers = {part: {"model_type": f"align_{part.removesuffix('_config')}_model"} for part in _PARTS}
    yield Published("ALIGN", "kakaobrain/align-base", {"model_type": "align", "projection_dim": 640, **towers})


_PARTS = ("text_config", "vision_config")
