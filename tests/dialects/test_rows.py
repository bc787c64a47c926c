"""The parts of a dialect's table: what a trainer always does, rows that refuse the rest, and readers."""

import pytest

from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.mapping import Dialect, Row, TheirRun, Tree
from lrsweep.dialects.reading import values_of
from lrsweep.dialects.rows import exact, fixed, key, number, pair
from lrsweep.dialects.writing import differences, edits, written
from lrsweep.errors import InputError
from tests.recorder import tiny


def dialect(always: Tree) -> Dialect:
    """A trainer with one key."""
    table = (key("rate", "optimizer.lr", 1e-4, number), fixed("toy", always))
    return Dialect(
        "toy",
        lambda version: table,
        (),
        "",
        lambda tree, command: TheirRun("toy {config}"),
        lambda config: {"out": "run"},
    )


ALWAYS = dialect({"optimizer.name": "adamw", "optimizer.betas": [0.9, 0.999], "scheduler.warmup_steps": None})


def test_what_a_trainer_always_does_is_read_and_not_written() -> None:
    read = values_of(ALWAYS, {})
    assert read["optimizer.name"] == "adamw"
    assert read["optimizer.betas"] == [0.9, 0.999]
    assert read["scheduler.warmup_steps"] is None
    assert written(ALWAYS, tiny(), None, (), None) == {"out": "run", "rate": 1e-3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer.name": "sgd"}, "optimizer.name='sgd': toy trains with 'adamw' only; set optimizer.name=adamw"),
        (
            {"optimizer.betas": [0.8, 0.999]},
            "optimizer.betas=(0.8, 0.999): toy trains with [0.9, 0.999] only; set optimizer.betas=[0.9, 0.999]",
        ),
        (
            {"scheduler.warmup_steps": 3, "scheduler.warmup_ratio": None},
            "scheduler.warmup_steps=3: toy trains with None only; set scheduler.warmup_steps=null",
        ),
    ],
)
def test_another_config_than_the_trainer_has_is_refused(changes: Tree, said: str) -> None:
    other = replace(tiny(), dict(changes))
    tuned = set(changes)
    with pytest.raises(InputError) as whole:
        written(ALWAYS, other, None, (), None)
    with pytest.raises(InputError) as imported:
        written(ALWAYS, other, {"rate": 1e-3}, tuned, None)
    with pytest.raises(InputError) as based:
        edits(ALWAYS, {"rate": 1e-3}, other, tuned, None)
    assert str(whole.value) == str(imported.value) == str(based.value) == said


def test_a_file_of_a_trainer_that_trains_otherwise_says_how() -> None:
    other = replace(tiny(), {"optimizer.name": "sgd"})
    assert differences(ALWAYS, {"rate": 1e-3}, other, None) == ["optimizer.name='adamw'"]


def test_an_error_in_what_a_trainer_always_does_names_our_key() -> None:
    """The trainer's file has no key to name."""
    with pytest.raises(InputError, match=r"^optimizer\.eps=0\.0: "):
        from_tree(dialect({"optimizer.eps": 0.0}), {"rate": 1e-3}, "theirs.yaml")


def test_a_row_refuses_what_it_would_read_as_another_config() -> None:
    """The trainer scales by 2: its one key is the rank."""

    def read(tree: Tree) -> Tree:
        return {"finetune.r": tree["rank"], "finetune.alpha": 2.0 * tree["rank"]}

    def write(config: SweepConfig) -> Tree:
        return {"rank": config.finetune.r}

    row = exact("toy", Row(("rank",), ("finetune.r", "finetune.alpha"), read, write))
    assert row.write(replace(tiny(), {"finetune.r": 4, "finetune.alpha": 8.0})) == {"rank": 4}
    with pytest.raises(InputError) as refused:
        row.write(replace(tiny(), {"finetune.r": 4, "finetune.alpha": 16.0}))
    assert str(refused.value) == "finetune.alpha=16.0: toy trains with 8.0 only; set finetune.alpha=8.0"


def test_a_pair_is_two_numbers() -> None:
    assert pair("betas", [0.9, "9e-1"]) == [0.9, 0.9]
    with pytest.raises(InputError, match=r"^betas=\[0\.9\]: not a pair of numbers; write it as \[0\.9, 0\.999\]$"):
        pair("betas", [0.9])
    with pytest.raises(InputError, match=r"^betas='0\.9': not a pair"):
        pair("betas", "0.9")
    with pytest.raises(InputError, match=r"^betas='x': not a number"):
        pair("betas", [0.9, "x"])
