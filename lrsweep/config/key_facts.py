"""What each config key affects: stated once, at the key (`trial_schema.py`, `schema.py`), and read here.

Five parts of lrsweep use it: which trial a checkpoint belongs to, whether two runs are the same sweep, which trials can
share a pack, which keys can be searched, and which losses are comparable.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

# What a key decides: what a trial measures, which trials a sweep has, or only how and where they run.
Scope = Literal["trial", "sweep", "run"]
# Whether each trial of a pack may have its own value, or all need the same one.
InPack = Literal["own", "same"]

_EXTRA = "lrsweep"


@dataclass(frozen=True)
class KeyFacts:
    """What one key affects.

    Attributes:
        scope: `trial`: it changes what a trial measures. `sweep`: it decides which trials there are. `run`: it may
            change between two runs of one sweep.
        in_pack: Whether trials of one pack may differ in it. Only for scope `trial`.
        tuned: Its best value may lie inside a range, so a best value at the end of the range is worth a warning.
        comparable: Eval losses of trials that differ in it are comparable: it does not change the eval rows or their
            tokens.
        later: Version 0.1.0 did not have it: with its default, a trial is the one that it was without the key.
    """

    scope: Scope
    in_pack: InPack | None = None
    tuned: bool = False
    comparable: bool = True
    later: bool = False


def trial_key(*, in_pack: InPack, tuned: bool = False, comparable: bool = True, later: bool = False) -> Any:
    """Field metadata for a key that changes what a trial measures."""
    return _field(KeyFacts("trial", in_pack, tuned, comparable, later))


def sweep_key() -> Any:
    """Field metadata for a key that decides which trials a sweep has."""
    return _field(KeyFacts("sweep"))


def run_key() -> Any:
    """Field metadata for a key that only decides how and where trials run."""
    return _field(KeyFacts("run"))


def _field(facts: KeyFacts) -> Any:
    return Field(json_schema_extra={_EXTRA: dict(vars(facts))})


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a schema that holds a value (`optimizer.lr`), with its field, in order."""
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is None:
            yield prefix + name, field
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, optional or not; None if the field holds a value."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


@cache
def facts_by_key(section: type[BaseModel]) -> Mapping[str, KeyFacts]:
    """The facts of every key of a schema. Raises KeyError for a key without facts."""
    found = {}
    for key, field in leaves(section):
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or _EXTRA not in extra:
            raise KeyError(f"{key}: state what it affects with trial_key, sweep_key or run_key")
        found[key] = KeyFacts(**extra[_EXTRA])  # type: ignore[arg-type]
    return found


def facts_of(section: type[BaseModel], key: str) -> KeyFacts:
    """The facts of a dotted key; a key inside a mapping (`optimizer.kwargs.momentum`) has those of the mapping."""
    table = facts_by_key(section)
    while key not in table and "." in key:
        key = key.rpartition(".")[0]
    return table[key]
