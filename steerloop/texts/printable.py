"""Text of models for terminals and files that people read."""

import unicodedata


def printable(text: str) -> str:
    """Text for a terminal: what a model writes must not move the cursor or set colours."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
