"""Dual encoders whose text tower is a BERT or whose image tower is one of timm."""
