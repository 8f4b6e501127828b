"""Who holds which image and what is measured, one file a protocol."""
