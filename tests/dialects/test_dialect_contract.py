"""What every dialect in TRAINERS has to do."""

import functools
from pathlib import Path
from typing import Any

import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects import TRAINERS, tree
from lrsweep.dialects.imported_run import Request
from lrsweep.dialects.importer import from_tree, imported
from lrsweep.dialects.mapping import get
from lrsweep.dialects.reading import values_of
from lrsweep.dialects.trial_file import of_trial
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml


@functools.cache
def config() -> SweepConfig:
    """A config that every trainer can express."""
    return sweep_config(
        [
            "+sweep=lora_lr",
            "model=local",
            "model.path=org/model",
            "model.dtype=bfloat16",
            "data=local",
            "data.path=rows.jsonl",
            "data.format=messages",
            "optimizer.lr=3e-5",
            "optimizer.betas=[0.85,0.97]",
            "optimizer.weight_decay=0.02",
            "training.seed=7",
            "training.batch_size=4",
            "training.gradient_accumulation_steps=2",
        ]
    )


@pytest.mark.parametrize("name", TRAINERS)
def test_a_config_goes_out_and_comes_back_the_same(name: str) -> None:
    """All its values come back, or the export's comments say which do not."""
    dialect, ours = TRAINERS[name], config()
    exported = tree(dialect, ours, set())
    read = values_of(dialect, load_yaml(to_yaml(exported), "export"))
    own = {key for row in dialect.rows(None) if row.keep_file_value for key in row.ours}
    for key, value in read.items():
        # Rows may need a file of their own there, such as a dataset_info.json.
        if key not in own and not key.startswith("data."):
            there: Any = get(ours, key)
            same = (list(there) if isinstance(there, tuple) else there) == value
            told = dialect.not_here(ours) != dialect.not_here(replace(ours, {key: value}))
            assert same or told, key
    assert read["optimizer.lr"] == 3e-5


@pytest.mark.parametrize("name", TRAINERS)
def test_an_import_exports_as_it_was_but_for_what_was_tuned(name: str) -> None:
    dialect = TRAINERS[name]
    file = dict(tree(dialect, config(), set())) | {"output_dir": "kept"}
    imported = from_tree(dialect, file, "theirs.yaml").config
    assert tree(dialect, imported, set()) == file
    tuned = tree(dialect, replace(imported, {"optimizer.lr": 1e-3}), {"optimizer.lr"})
    theirs = {key for row in dialect.rows(None) if "optimizer.lr" in row.ours for key in row.theirs}
    assert {key for key in file if tuned[key] != file[key]} <= theirs
    assert tuned != file


@pytest.mark.parametrize("name", TRAINERS)
def test_a_key_that_lrsweep_does_not_know_has_their_trainer_train_the_file(name: str) -> None:
    dialect = TRAINERS[name]
    file = dict(tree(dialect, config(), set())) | {"a_key_that_lrsweep_does_not_know": "kept"}
    run = imported(name, file, "theirs.yaml", Request(command="train {config}"))
    assert run.reasons == (f"a_key_that_lrsweep_does_not_know='kept': lrsweep does not know what it changes in {name}",)
    assert tree(dialect, run.config, set()) == file
    tuned = tree(dialect, replace(run.config, {"optimizer.lr": 1e-3}), {"optimizer.lr"})
    assert {key for key in tuned if tuned[key] != file.get(key)} <= {"learning_rate"}
    assert tuned != file
    with pytest.raises(InputError, match=r"^a_key_that_lrsweep_does_not_know="):
        imported(name, file, "theirs.yaml", Request(engine="ours"))
    assert not imported(name, file | {"a_key_that_lrsweep_does_not_know": None}, "theirs.yaml").reasons


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trials_file_writes_where_it_is_told_and_evaluates(name: str, tmp_path: Path) -> None:
    dialect, ours = TRAINERS[name], config()
    file = of_trial(dialect, tree(dialect, ours, set()), ours, tmp_path)
    assert str(tmp_path) in file.values()
    assert ours.training.eval_every in file.values()
    assert not file.get("push_to_hub")


CHANGES: dict[str, Any] = {
    "optimizer.name": "sgd",
    "optimizer.lr": 7e-4,
    "optimizer.betas": [0.7, 0.9],
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.3,
    "optimizer.kwargs": {"amsgrad": True},
    "scheduler.name": "linear",
    "scheduler.warmup_ratio": 0.2,
    "scheduler.warmup_steps": 12,
    "scheduler.kwargs": {"num_cycles": 0.25},
    "finetune.r": 4,
    "finetune.alpha": 32.0,
    "finetune.dropout": 0.1,
    "finetune.mode": "full",
    "finetune.target_modules": ["q_proj", "v_proj"],
    "finetune.dora": True,
    "finetune.rslora": True,
    "finetune.loraplus_lr_ratio": 16.0,
    "finetune.init_lora_weights": "pissa",
    "finetune.unfrozen_parameters": ["^model.layers.1.", "^lm_head"],
    "model.special_tokens": {"eos_token": "<|im_end|>"},
    "model.pad_embeddings_to_multiple_of": 32,
    "data.drop_long_rows": True,
    "data.train_on_prompt": True,
    "optimizer.lr_groups": {"lora_B": 4.0},
    "model.dtype": "float32",
    "training.batch_size": 16,
    "training.max_grad_norm": 0.5,
    "training.gradient_accumulation_steps": 8,
    "training.seed": 3,
    "model.double_quantization": False,
    "training.loss": "dft",
    "training.eaft_alpha": 0.5,
    "training.asft_alpha": 0.5,
    "training.mean_over": "batches",
    "model.output_router_logits": True,
    "model.router_aux_loss_coef": 0.5,
    "data.max_length": 256,
}


# What must change too.
BESIDE: dict[str, dict[str, Any]] = {
    "scheduler.warmup_steps": {"scheduler.warmup_ratio": None},
    "model.router_aux_loss_coef": {"model.output_router_logits": True},
    "finetune.unfrozen_parameters": {"finetune.mode": "freeze"},
}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("name", TRAINERS)
def test_no_key_is_dropped_silently(name: str, key: str) -> None:
    """A key comes back as it went out, or the export refuses it, or its comments say what the key was."""
    changes = {key: CHANGES[key]} | BESIDE.get(key, {})
    dialect, ours = TRAINERS[name], replace(config(), changes)
    assert ours != config()
    try:
        read = values_of(dialect, load_yaml(to_yaml(tree(dialect, ours, set())), "export"))
    except InputError:
        return
    there: Any = get(ours, key)
    if key not in read or read[key] != (list(there) if isinstance(there, tuple) else there):
        assert key.split(".")[0] in ("model", "data", "finetune")
        assert dialect.not_here(ours) != dialect.not_here(config())


@pytest.mark.parametrize("name", TRAINERS)
def test_what_changes_the_training_is_refused_not_dropped(name: str) -> None:
    dialect = TRAINERS[name]
    for refusal in dialect.refusals:
        for key in refusal.keys.split():
            assert [str(fault).partition("=")[0] for fault in refusal.faults({key: "something"})] == [key]
