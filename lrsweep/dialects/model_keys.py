"""The model, as LLaMA-Factory and TRL name it."""

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Tree, word
from lrsweep.errors import InputError


def read_model(tree: Tree) -> Tree:
    """The model."""
    if not tree.get("model_name_or_path"):
        raise InputError("model_name_or_path: missing; a run needs its model")
    revision = tree.get("model_revision")
    return {
        "model.path": word("model_name_or_path", tree["model_name_or_path"]),
        "model.revision": None if revision in (None, "main") else word("model_revision", revision),
    }


def write_model(config: SweepConfig) -> Tree:
    """The same, back."""
    model = config.model
    return {"model_name_or_path": model_folder(model.path)} | (
        {"model_revision": model.revision} if model.revision else {}
    )


def model_folder(path: str) -> str:
    """The model's path; that of the shipped model where that is meant."""
    if path != "embedded":
        return path
    from lrsweep.embedded import BASE

    return str(BASE)
