"""A page on loopback that shows a run, a comparison, a server or a fleet live, from what is on disk."""
