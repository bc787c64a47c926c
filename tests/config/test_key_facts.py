"""Every key says what it affects; what the five users of that derive is what it was when each kept a list by hand."""

from typing import Annotated

import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.key_facts import facts_by_key, trial_key
from lrsweep.config.schema import SweepConfig, key_facts, keys, trial_part
from lrsweep.config.trial_schema import Section


def test_every_key_says_what_it_affects_and_what_it_means() -> None:
    from lrsweep.config.key_facts import leaves

    facts = facts_by_key(SweepConfig)
    assert list(facts) == keys()
    for key, found in facts.items():
        assert (found.in_pack is not None) == (found.scope == "trial"), key
    assert [key for key, field in leaves(SweepConfig) if not field.description] == []


def test_a_key_without_an_answer_is_an_error() -> None:
    class Forgetful(Section):
        answered: Annotated[int, trial_key(in_pack="own")] = 1
        forgotten: int = 2

    with pytest.raises(KeyError, match="forgotten: state what it affects"):
        facts_by_key(Forgetful)


def test_the_sections_of_a_trial_change_what_it_measures_but_for_what_it_keeps() -> None:
    sections = ("model", "data", "finetune", "optimizer", "scheduler", "training")
    kept = {"training.save_adapter", "training.checkpoint_seconds"}
    trial = {key for key in keys() if key.split(".")[0] in sections} - kept
    assert {key for key in keys() if key_facts(key).scope == "trial"} == trial


def test_what_may_change_between_two_runs_of_a_sweep() -> None:
    free = (
        "search.n_trials",
        "search.tolerance",
        "search.budget",
        "search.storage",
        "search.extend",
        "search.replicates",
        "search.rescue",
        "search.prior",
        "search.preflight",
        "search.max_failures",
        "engine.name",
        "engine.slots",
        "engine.compile",
        "engine.python",
        "executor.",
        "tracking.",
        "training.save_adapter",
        "training.checkpoint_seconds",
        "resume",
    )
    assert {key for key in keys() if key_facts(key).scope == "run"} == {key for key in keys() if key.startswith(free)}


def test_what_trials_of_a_pack_must_agree_in() -> None:
    same = (
        "model.",
        "data.",
        "finetune.mode",
        "finetune.target_modules",
        "finetune.dora",
        "finetune.init_lora_weights",
        "finetune.trainable_layers",
        "finetune.unfrozen_parameters",
        "finetune.pure_bf16",
        "training.batch_size",
        "training.gradient_accumulation_steps",
        "training.eval_batch_size",
        "training.gradient_checkpointing",
        "training.loss",
        "training.eaft_alpha",
        "training.asft_alpha",
        "training.mean_over",
    )
    assert {key for key in keys() if key_facts(key).in_pack == "same"} == {k for k in keys() if k.startswith(same)}
    part = trial_part(sweep_config(["+sweep=lora_lr"]), same_in_pack=True)
    assert list(part) == ["model", "data", "finetune", "training"]


def test_tuned_keys_and_comparable_losses() -> None:
    tuned = ("optimizer.", "scheduler.", "finetune.")
    assert {key for key in keys() if key_facts(key).tuned} == {key for key in keys() if key.startswith(tuned)}
    same_rows = {
        "data.max_train_rows",
        "data.packing",
        "model.dtype",
        "model.quantization",
        "model.double_quantization",
        "model.attn_implementation",
        "model.pad_embeddings_to_multiple_of",
    }
    other_rows = {key for key in keys() if key.startswith(("data.", "model."))} - same_rows
    assert {key for key in keys() if not key_facts(key).comparable} == other_rows


def test_keys_inside_a_mapping_have_the_mappings_facts() -> None:
    assert key_facts("optimizer.kwargs.momentum") == key_facts("optimizer.kwargs")
    assert key_facts("space.optimizer.lr") == key_facts("space")
