"""The load-balancing loss of a mixture of experts, as the model itself adds it to its loss of labels."""

from typing import Any

from torch import Tensor

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import ModelConfig
from lrsweep.errors import InputError

# What models call the weight of the loss.
_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


def set_router(model: ModelConfig, config: Any) -> None:
    """Sets what `model` says of the router's loss in transformers' config, before the model is built from it.

    Raises:
        InputError: The model has no such loss, or its weight has another name.
    """
    if not model.output_router_logits:
        return
    inner = config.get_text_config()
    values = {"output_router_logits": True, "router_aux_loss_coef": model.router_aux_loss_coef}
    for name, value in values.items():
        if value is None:
            continue
        if not hasattr(inner, name):
            fix = "false, and router_aux_loss_coef to null" if value is True else "null"
            raise InputError(
                f"model.{name}={str(value).lower()}: the config of model.path={model.path!r} ({inner.model_type}) has "
                f"no {name}; set it to {fix}"
            )
        setattr(inner, name, value)


def has_router_loss(config: Any) -> bool:
    """Whether a model with this config adds the router's loss to its own."""
    return bool(getattr(config.get_text_config(), "output_router_logits", False))


def router_loss(model: Any, outputs: Any) -> Tensor | float:
    """The router's share of the model's loss on a batch.

    Args:
        model: The model, also inside an adapter's.
        outputs: What it returned for the batch.
    """
    found = getattr(outputs, "aux_loss", None)
    if not isinstance(found, Tensor):
        return 0.0
    known = [getattr(model, name) for name in _WEIGHTS if hasattr(model, name)]
    weight: float = known[0] if known else model.config.get_text_config().router_aux_loss_coef
    return weight * found


def check_padding(config: SweepConfig, of_model: Any) -> None:
    """Refuses batches whose padding would count as tokens: packed blocks have no attention mask.

    Args:
        config: The trial's config.
        of_model: transformers' config of the model.

    Raises:
        InputError: There are such batches, and the model has a router's loss.
    """
    if config.data.packing and config.training.batch_size > 1 and has_router_loss(of_model):
        raise InputError(
            f"data.packing=true: in batches of {config.training.batch_size} blocks, the router's loss "
            "(output_router_logits) would count padding; set training.batch_size=1, or data.packing=false"
        )
