"""A device in a fleet: it asks a registry for signed bundles, proves them, switches, and goes back by itself.

It needs grpcio beside what the rest of the runtime needs: `pip install "fedgraft-device[agent]"`.
"""
