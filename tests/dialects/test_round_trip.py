"""A config that comes in and goes out untuned means the same; tuned, it differs in the tuned keys and nothing else."""

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrsweep import dialects
from lrsweep.config.schema import replace
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.reading import values_of
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.files.yaml_writer import to_yaml
from tests.dialects.examples import EXAMPLES, meaning
from tests.dialects.generated import CONFIGS

QUICK = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
NAMES = list(CONFIGS)
YAML_1_1 = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def table_values(dialect: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What the table reads of a file, without the keys that always stay the file's own."""
    trainer = dialects.TRAINERS[dialect]
    own = {name for row in trainer.rows(None) if row.keep_file_value for name in row.ours}
    return {key: value for key, value in values_of(trainer, tree).items() if key not in own}


def survives(dialect: str, tree: dict[str, Any]) -> None:
    trainer = dialects.TRAINERS[dialect]
    run = from_tree(trainer, tree, "theirs.yaml")
    back = dialects.tree(trainer, run.config, set())
    assert meaning(dialect, back) == meaning(dialect, tree)
    exported = to_yaml(back)
    assert yaml.load(exported, YAML_1_1) == load_yaml(exported, "export") == back
    # The table alone, without what was kept, says the same; where it has no key for a thing, both are silent.
    if dialect == "transformers" or "data.format" in run.missing or "data.path" in run.missing:
        return
    config = run.config.model_copy(update={"origin": None})
    alone = dialects.tree(trainer, config, set())
    assert table_values(dialect, alone) == table_values(dialect, tree)


@QUICK
@given(tree=CONFIGS["llamafactory"])
def test_llamafactory(tree: dict[str, Any]) -> None:
    survives("llamafactory", tree)


@QUICK
@given(tree=CONFIGS["transformers"])
def test_transformers(tree: dict[str, Any]) -> None:
    survives("transformers", tree)


@QUICK
@given(tree=CONFIGS["trl"])
def test_trl(tree: dict[str, Any]) -> None:
    survives("trl", tree)


@QUICK
@given(tree=CONFIGS["axolotl"])
def test_axolotl(tree: dict[str, Any]) -> None:
    survives("axolotl", tree)


@QUICK
@given(tree=CONFIGS["ms-swift"])
def test_ms_swift(tree: dict[str, Any]) -> None:
    survives("ms-swift", tree)


@pytest.mark.parametrize(("dialect", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_come_back_as_they_were(dialect: str, text: str) -> None:
    tree = load_yaml(text, "example")
    survives(dialect, tree)
    run = from_tree(dialects.TRAINERS[dialect], tree, "theirs.yaml")
    back = dialects.tree(dialects.TRAINERS[dialect], run.config, set())
    assert {key: back.get(key) for key in tree} == tree


@pytest.mark.parametrize("dialect", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_tuned_keys_are_said_and_read_again(dialect: str, data: st.DataObject) -> None:
    tree = data.draw(CONFIGS[dialect])
    trainer = dialects.TRAINERS[dialect]
    run = from_tree(trainer, tree, "theirs.yaml")
    changes = {
        "optimizer.lr": data.draw(st.floats(1e-9, 1.0)),
        "optimizer.betas": [data.draw(st.floats(0, 0.99)), data.draw(st.floats(0, 0.9999))],
        "optimizer.weight_decay": data.draw(st.floats(0, 0.5)),
        "scheduler.warmup_steps": None,
        "scheduler.warmup_ratio": data.draw(st.floats(0.001, 0.9)),
    }
    # Trials of the run's own length: a short one that never leaves such a warm-up is refused.
    whole = replace(run.config, {"training.max_steps": run.config.training.schedule_steps})
    best = replace(whole, changes)
    tuned = dialects.tuned(whole, best)
    back = dialects.tree(trainer, best, tuned)
    again = table_values(dialect, back)
    before = table_values(dialect, tree)
    assert {key: again[key] for key in again if key not in changes} == {
        key: before[key] for key in before if key not in changes
    }
    assert all(
        list(again[key]) == value if isinstance(value, list) else again[key] == value for key, value in changes.items()
    )
