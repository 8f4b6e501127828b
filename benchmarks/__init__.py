"""Measurements: each module prints a small table and writes JSON; nothing here is a test."""
