"""Trait packs: begin one, and check one, its texts and whether a model's readouts see it."""
