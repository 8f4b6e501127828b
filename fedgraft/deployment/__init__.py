"""A deployment's processes: Flower's SuperLink and SuperNodes with TLS and keys, and a resident worker at each site."""
