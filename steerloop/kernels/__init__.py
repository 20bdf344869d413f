"""Pieces that a reader of the core can take on trust.

A leaf: nothing here imports the core. Each piece is compared with a slow, obvious twin in
`steerloop/checks`.
"""
