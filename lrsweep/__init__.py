"""lrsweep finds the learning rate for a fine-tune: it runs short trials and exports the best config to your trainer."""

__version__ = "0.2.0.dev0"
