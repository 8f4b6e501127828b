"""Secure aggregation as pure functions: encoding, keys and masks, shared secrets, and the stages of a round."""
