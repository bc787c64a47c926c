"""The error for what cannot be packed."""


class Unpackable(ValueError):  # noqa: N818
    """In a pack, the model or adapter would not train with the same numbers as by itself; the message says why."""
