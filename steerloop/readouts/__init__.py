"""What is measured on a state of the model, one module a readout: a function of the model and the
config that gives a table or a value per item."""
