"""Experiment trackers, by their own libraries: they show what a run directory holds, which stays the source."""
