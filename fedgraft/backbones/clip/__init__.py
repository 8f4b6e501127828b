"""CLIP and what is built like it."""
