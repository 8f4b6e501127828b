"""Federations on one machine or one cluster, and comparisons of methods."""
