"""A fleet of devices: the registry that gives out signed bundles, and what comes back of them."""
