"""Serve the dial: any round, any dose, over the protocol that clients speak, from one batch."""
