"""Procedural image worlds: what the embedded backbone was pretrained on and what it is evaluated on."""
