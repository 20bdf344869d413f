"""Arithmetic that a reader of the core can take on trust: no paths, no config, no model.

Each piece is compared with a slow, obvious twin in `steerloop/checks`.
"""
