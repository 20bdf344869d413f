"""Files of people → tables, how questions are worded, and what a text gives away. No torch, and
nothing of the package but its error class."""
