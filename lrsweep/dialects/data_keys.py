"""Data keys that several dialects share: the rows that are held out for evaluation."""

from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Tree, brief
from lrsweep.dialects.rows import number
from lrsweep.errors import InputError
from lrsweep.training.data.reading import Source

NO_EVALUATION = "the run has no evaluation; trials hold out 10% of the rows for it"


def held_out(tree: Tree, name: str) -> Tree:
    """Reads the share or the number of rows that the trainer's key `name` holds out; 0 sets nothing."""
    share = number(name, tree.get(name) or 0)
    return {"data.eval_fraction": share} if share > 0 else {}


def share_only(fraction: float, tool: str) -> float:
    """Returns `data.eval_fraction` for a trainer that holds out a share of the rows. Raises InputError for a number."""
    if fraction >= 1:
        raise InputError(f"data.eval_fraction={fraction:g}: {tool} holds out a share of the rows only; set it below 1")
    return fraction


def share_held_out(tree: Tree, config: SweepConfig, others: str, share: str) -> Tree:
    """Returns a share of the rows to evaluate on if a trial's file has no evaluation, as a trial needs its eval loss.

    Args:
        tree: The trial's file.
        config: The trial's config.
        others: The trainer's key for an evaluation set.
        share: The trainer's key for the share that is held out.
    """
    return {} if tree.get(others) or tree.get(share) else {share: config.data.eval_fraction}


def rows_in(path: str) -> int | None:
    """Returns how many rows a local file or folder has; None for one on a hub, or one that cannot be read."""
    source = Source("data.path", path, None, "train")
    try:
        return None if source.local is None else len(source.open())
    except InputError:
        return None


def moved(sets: Any, name: str, folder: str) -> list[Any]:
    """Returns a list of data sets whose files, under `name` or `data_files`, are in another folder."""
    if not isinstance(sets, list) or not all(isinstance(entry, dict) for entry in sets):
        raise InputError(f"datasets={brief(sets)}: not a list of data sets, so --data-dir cannot move them; correct it")
    found = []
    for entry in sets:
        # Where an entry names its files, its path is their kind.
        key = "data_files" if entry.get("data_files") else name
        files = entry.get(key)
        paths = [str(Path(folder, str(file))) for file in (files if isinstance(files, list) else [files])]
        found.append(entry if files is None else entry | {key: paths if isinstance(files, list) else paths[0]})
    return found


def rows_are_ours(config: SweepConfig) -> str:
    """Returns a comment for a file with the embedded data set, which other tools do not have; else an empty string."""
    if config.data.path != "embedded":
        return ""
    return (
        "# The data set `embedded` is lrsweep's own, from Python's standard library: replace it with your data set.\n"
    )
