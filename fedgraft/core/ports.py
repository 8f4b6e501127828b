"""The TCP ports that commands listen on unless they are told otherwise."""

SERVER, FLEET, WATCH = 9092, 9093, 8420
DEFAULTS = {"fedgraft server": SERVER, "fedgraft fleet serve": FLEET, "fedgraft watch": WATCH}
"""By command; `fedgraft doctor` says which of them are taken."""
