"""Frozen encoders: loading, fingerprints, the exact fast text path and the image-feature store."""

from fedgraft.backbones.backbone import Backbone, ClassTokens, TextTower
from fedgraft.backbones.loading import best_device, load_backbone

__all__ = ["Backbone", "ClassTokens", "TextTower", "best_device", "load_backbone"]
