"""Which site holds which image and what is measured, one file per protocol."""
