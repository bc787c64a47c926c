"""What the trainers' keys say of the load-balancing loss of a mixture of experts."""

import json
import re
from collections.abc import Callable, Mapping

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Row, Tree, brief
from lrsweep.dialects.rows import exact, flag, number
from lrsweep.dialects.training_arguments import mapping_of
from lrsweep.errors import InputError
from lrsweep.files.paths import expanded

OURS = ("model.output_router_logits", "model.router_aux_loss_coef")
OFF: Mapping[str, object] = {"model.output_router_logits": False, "model.router_aux_loss_coef": None}


def weighted(key: str, value: object) -> Tree:
    """Returns our keys for the loss with a weight. Raises InputError for a value that is no weight."""
    weight = number(key, value)
    if not 0 <= weight < 1e36:
        raise InputError(f"{key}={brief(value)}: a weight is a number from 0 on; correct it")
    return {"model.output_router_logits": True, "model.router_aux_loss_coef": weight}


def weight_of(config: SweepConfig, trainer: str) -> float:
    """Returns the weight. Raises InputError if it is the model's own, for a trainer that needs the number."""
    weight = config.model.router_aux_loss_coef
    if weight is None:
        raise InputError(
            f"model.router_aux_loss_coef=null: {trainer} needs the number; set it to that of the model's config.json"
        )
    return weight


def row(trainer: str, key: str, others: tuple[str, ...], replaced: Callable[[Tree], bool]) -> Row:
    """Makes the row of a trainer that adds the loss if the file gives a weight other than 0.

    Args:
        trainer: Its name, for messages.
        key: Its key for the weight.
        others: The keys that `replaced` reads.
        replaced: Whether a file has a loss in place of the model's own, without the router's. May raise InputError.
    """

    def read(tree: Tree) -> Tree:
        given = tree.get(key)
        return OFF if not given or number(key, given) == 0 or replaced(tree) else weighted(key, given)

    def write(config: SweepConfig) -> Tree:
        return {key: weight_of(config, trainer)} if config.model.output_router_logits else {}

    return exact(trainer, Row((*others, key), OURS, read, write))


# Names of models that are a mixture of experts, as far as names tell, and the keys of their configs.
_NAMES = re.compile(
    r"moe|mixtral|gpt-oss|jamba|dbrx|minimax|granite-4.0-h|[-_]a\d+(\.\d+)?[bm]\b|\d+x\d+(\.\d+)?b\b|b-\d+e\b",
    re.IGNORECASE,
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def is_mixture(model: str) -> bool:
    """Returns whether a model is a mixture of experts: by its config if it is a folder here, else by its name."""
    config = expanded(model) / "config.json"
    if model and config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8"))
            inner = found.get("text_config", found)
            return any(inner.get(name) for name in _EXPERTS)
        except (OSError, ValueError, AttributeError):
            return False  # whoever loads it says what is wrong
    return _NAMES.search(model) is not None


# Axolotl's two names for values that replace those of the model's config.
_OVERRIDES = ("overrides_of_model_config", "model_config")


def _read_axolotl(tree: Tree) -> Tree:
    named = [name for name in _OVERRIDES if tree.get(name)]
    given: Mapping[str, object] = {}
    for name in named:
        given = mapping_of(name, tree[name])
        others = given.keys() - {"output_router_logits", "router_aux_loss_coef"}
        if others or len(named) > 1:
            raise InputError(f"{name}={brief(tree[name])}: it changes the model; remove it")
    key = ".".join((*named, "output_router_logits"))
    asked = flag(key, given.get("output_router_logits") or False)
    weight = given.get("router_aux_loss_coef")
    if weight is not None and not asked:
        raise InputError(f"{key}: missing beside router_aux_loss_coef, so only the model knows; give it")
    if asked and flag("sample_packing", tree.get("sample_packing") or False):
        raise InputError(f"{key}=True: with sample_packing, Axolotl counts padding or rows by their place; do not pack")
    if not asked:
        return OFF
    own = {"model.output_router_logits": True, "model.router_aux_loss_coef": None}
    return own if weight is None else weighted("router_aux_loss_coef", weight)


def _write_axolotl(config: SweepConfig) -> Tree:
    model = config.model
    if not model.output_router_logits:
        return {}
    if config.data.packing:
        raise InputError(
            "model.output_router_logits=true: with sample_packing, Axolotl counts padding or rows by their place; set "
            "data.packing=false"
        )
    weight = model.router_aux_loss_coef
    return {
        "model_config": {"output_router_logits": True} | ({} if weight is None else {"router_aux_loss_coef": weight})
    }


AXOLOTL = exact("Axolotl", Row(("sample_packing", *_OVERRIDES), OURS, _read_axolotl, _write_axolotl))
