"""The model's keys, which LLaMA-Factory and TRL share."""

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.rows import word
from lrsweep.embedded import NO_HUB, folder_of
from lrsweep.errors import InputError
from lrsweep.training import modelscope


def read_model(tree: Tree) -> Tree:
    """Reads the model and its revision. Raises InputError if there is no model."""
    if not tree.get("model_name_or_path"):
        raise InputError("model_name_or_path: missing; give the model")
    revision = tree.get("model_revision")
    return {
        "model.path": word("model_name_or_path", tree["model_name_or_path"]),
        "model.revision": None if revision in (None, "main") else word("model_revision", revision),
    }


def write_model(config: SweepConfig) -> Tree:
    """Writes the model and its revision."""
    model = config.model
    return {"model_name_or_path": model_folder(model.path)} | (
        {"model_revision": model.revision} if model.revision else {}
    )


def model_folder(path: str) -> str:
    """Returns the model's path or hub id; for the models that need no hub, their folder.

    Raises:
        InputError: The model is on ModelScope, from which only ms-swift takes it by its id.
    """
    if path.startswith(modelscope.PREFIX):
        raise InputError(f"model.path={path}: only ms-swift takes models from ModelScope; give the model's folder")
    return folder_of(path) if path in NO_HUB else path
