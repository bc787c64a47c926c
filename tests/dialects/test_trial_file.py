"""The file that a trial's own trainer gets: what it would publish or keep is taken out, and its curve can be read."""

from pathlib import Path
from typing import Any

import pytest

from lrsweep import dialects
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.trial_file import of_trial
from lrsweep.dialects.yaml_reader import load_yaml
from tests.dialects.examples import AXOLOTL, EXAMPLES, LLAMAFACTORY_FULL, LLAMAFACTORY_LORA, TRL


def trial_of(dialect: str, text: str) -> dict[str, Any]:
    run = from_tree(dialects.TRAINERS[dialect], load_yaml(text, "f"), "f")
    return of_trial(
        dialects.TRAINERS[dialect],
        dialects.tree(dialects.TRAINERS[dialect], run.config, set()),
        run.config,
        Path("/o/run"),
    )


@pytest.mark.parametrize(("dialect", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_dialect_evaluates_and_writes_where_it_is_read(dialect: str, text: str) -> None:
    found = trial_of(dialect, text)
    assert (found["output_dir"], found["logging_steps"], found["eval_strategy"]) == ("/o/run", 1, "steps")
    if dialect == "llamafactory":
        assert found["save_strategy"] == "no", "it logs as it goes"
    else:
        assert found["save_steps"] == found["eval_steps"], "its log comes out with its checkpoints"
        assert (found["save_only_model"], found["save_total_limit"]) == (True, 1)


def test_nothing_is_published() -> None:
    assert "push_to_hub" not in trial_of("trl", TRL)
    assert "hub_model_id" not in trial_of("axolotl", AXOLOTL.replace("# hub_model_id", "hub_model_id"))


def test_two_ways_to_say_how_often_are_not_both_there() -> None:
    found = trial_of("axolotl", AXOLOTL)
    assert not {"evals_per_epoch", "saves_per_epoch"} & set(found)


def test_rows_are_held_out_where_the_run_has_no_evaluation() -> None:
    assert trial_of("llamafactory", LLAMAFACTORY_FULL)["val_size"] == 0.1
    assert trial_of("llamafactory", LLAMAFACTORY_LORA)["val_size"] == 0.1, "the file's own"
    assert trial_of("llamafactory", LLAMAFACTORY_FULL + "eval_dataset: talks\n").get("val_size") is None
    assert trial_of("axolotl", AXOLOTL.replace("val_set_size: 0.1", "val_set_size: 0"))["val_set_size"] == 0.1


def test_trl_splits_off_rows_where_the_run_has_no_split_to_evaluate_on() -> None:
    run = (
        "model_name_or_path: m\ncompletion_only_loss: true\nlora_target_modules: all-linear\nuse_peft: true\n"
        "max_steps: 9\n"
    )
    file = "datasets: [{path: json, data_files: rows.jsonl}]\n"
    assert trial_of("trl", run + file)["test_split_size"] == 0.1
    assert trial_of("trl", run + file + "test_split_size: 0.2\n")["test_split_size"] == 0.2
    hub = "dataset_name: org/rows\ndataset_config: en\ndataset_train_split: sft\n"
    found = trial_of("trl", run + hub)
    assert found["datasets"] == [{"path": "org/rows", "name": "en", "split": "sft"}]
    assert found["test_split_size"] == 0.1
    assert not {"dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"} & set(found)
    with_split = trial_of("trl", run + hub + "eval_strategy: steps\ndataset_test_split: held_out\n")
    assert (with_split["dataset_name"], with_split["dataset_test_split"]) == ("org/rows", "held_out")
    assert "test_split_size" not in with_split
