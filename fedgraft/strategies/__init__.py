"""Aggregation rules, one file each, all Flower strategies."""
