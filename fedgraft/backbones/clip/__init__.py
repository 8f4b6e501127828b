"""CLIP and models built like it."""
