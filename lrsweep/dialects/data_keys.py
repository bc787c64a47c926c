"""What the dialects say alike of a run's rows."""

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Tree, number
from lrsweep.errors import InputError

NO_EVALUATION = "the run has no evaluation; trials hold out a tenth of the rows"


def held_out(tree: Tree, name: str) -> Tree:
    """The share of the rows that is held out."""
    share = number(name, tree.get(name) or 0)
    if share >= 1:
        raise InputError(f"{name}={share:g}: trials hold out a share of the rows; write it as one, below 1")
    return {"data.eval_fraction": share} if share > 0 else {}


def share_held_out(tree: Tree, config: SweepConfig, others: str, share: str) -> Tree:
    """A share of the rows to evaluate on, where a file names no other evaluation: a trial is for its eval loss."""
    return {} if tree.get(others) or tree.get(share) else {share: config.data.eval_fraction}


def rows_are_ours(config: SweepConfig) -> str:
    """What a file has to say that names rows which no other tool has."""
    if config.data.path != "embedded":
        return ""
    return "# The rows are lrsweep's own, from Python's standard library: name your data set instead of `embedded`.\n"
