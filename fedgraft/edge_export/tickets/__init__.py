"""Tickets: subnetworks of the image tower, natural or robust."""
