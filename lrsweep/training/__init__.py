"""Training: the engines, and the model, data, optimizer and evaluation code that they share."""
