"""Data sources, partitions and protocols: which images there are, and which site holds which of them."""
