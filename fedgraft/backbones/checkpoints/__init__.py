"""Checkpoints as people hold them, turned into safetensors folders that a backbone family opens."""
