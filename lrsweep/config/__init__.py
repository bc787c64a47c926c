"""The config of a sweep: its schema, how Hydra composes it, and what is searched."""
