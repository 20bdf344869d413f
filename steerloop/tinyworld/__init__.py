"""The embedded model: a micro-world with a known disposition, and a chat model trained on it."""
