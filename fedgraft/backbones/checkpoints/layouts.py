"""Folders of checkpoints: their configuration, and the files of weights beside it."""

OPENCLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
LAYOUTS = {
    HUGGING_FACE: (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
    ),
    OPENCLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}  # fmt: skip
"""A layout's configuration, and the files of weights that may stand beside it, best first."""
