"""Other people's programs on our exports, each in an environment of its own."""
