"""lrsweep finds the learning rate for a fine-tune: short trials, compared in MLflow, exported to your trainer."""

__version__ = "0.1.0"
