"""Which models can be had by a short name, where they lie, and how to get one.

What is known of them is in `known.py`, the names are in `loading/hub.py`. A fetched model is a
snapshot in the hub's cache or, of two small ones that Python packages carry, a folder in the user's
cache that `loading/hub.py` finds.
"""
