"""Why something cannot be packed."""


class Unpackable(ValueError):  # noqa: N818
    """The model or the adapter cannot be trained in a pack with unchanged numbers; the message says why."""
