"""The processes of a deployment: Flower's SuperLink and SuperNodes with TLS and keys, and each site's worker."""
