"""A model's name → the model on a device, with its tokenizer."""
