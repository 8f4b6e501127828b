"""The pictures of the documentation, each made by one command from runs of its own: `python -m tools.pictures NAME`.

A module of this package whose `make(work, out)` writes pictures into `out` and returns their paths is found by its
name; `work` is an empty or earlier folder for the runs that it needs, which it may find finished there.
"""
