"""Knobs, parsing, how a command starts and ends."""
