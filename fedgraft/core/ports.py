"""The TCP ports that commands listen on unless they are told otherwise."""

SERVER, FLEET = 9092, 9093
DEFAULTS = {"fedgraft server": SERVER, "fedgraft fleet serve": FLEET}
"""By command; `fedgraft doctor` says which of them are taken."""
