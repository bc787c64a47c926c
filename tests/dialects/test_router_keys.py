"""The load-balancing loss of a mixture of experts in each trainer's language, as its source reads the keys."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects import TRAINERS, tree
from lrsweep.dialects.imported_run import Imported
from lrsweep.dialects.importer import imported
from lrsweep.dialects.router_keys import is_mixture
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml
from tests.dialects.test_exactness import FILES

ROUTED = {"output_router_logits": True}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
AXOLOTL = FILES["axolotl"] | LORA
LLAMAFACTORY = FILES["llamafactory"]
SWIFT = FILES["ms-swift"] | {"gradient_accumulation_steps": 1}
TRL = FILES["trl"] | {"assistant_only_loss": True}
MIXTURE = TRL | {"model_name_or_path": "org/Qwen3-30B-A3B"}
BASES = {"axolotl": AXOLOTL, "llamafactory": LLAMAFACTORY, "ms-swift": SWIFT, "trl": TRL}


def run_of(dialect: str, file: dict[str, Any]) -> Imported:
    return imported(dialect, file, "f.yaml")


def asked(config: SweepConfig) -> tuple[bool, float | None, str]:
    return config.model.output_router_logits, config.model.router_aux_loss_coef, config.training.mean_over


@pytest.mark.parametrize(
    ("dialect", "file", "expected"),
    [
        ("axolotl", AXOLOTL | {"model_config": ROUTED}, (True, None, "batches")),
        ("axolotl", AXOLOTL | {"gradient_accumulation_steps": 4}, (False, None, "batches")),
        ("axolotl", AXOLOTL | {"overrides_of_model_config": ROUTED}, (True, None, "batches")),
        ("axolotl", AXOLOTL | {"model_config": ROUTED | {"router_aux_loss_coef": 0.02}}, (True, 0.02, "batches")),
        ("axolotl", AXOLOTL | {"model_config": {"output_router_logits": False}}, (False, None, "batches")),
        ("axolotl", AXOLOTL | {"model_config": {}}, (False, None, "batches")),
        ("axolotl", AXOLOTL | {"model_config": None, "sample_packing": True}, (False, None, "batches")),
        ("axolotl", AXOLOTL, (False, None, "batches")),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": 0.01}, (True, 0.01, "tokens")),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": 0}, (False, None, "tokens")),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": None}, (False, None, "tokens")),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": 0.01, "use_dft_loss": True}, (False, None, "tokens")),
        ("llamafactory", LLAMAFACTORY | {"neat_packing": True}, (False, None, "tokens")),
        ("ms-swift", SWIFT | {"router_aux_loss_coef": 1e-3}, (True, 1e-3, "tokens")),
        ("ms-swift", SWIFT | {"router_aux_loss_coef": "1e-3"}, (True, 1e-3, "tokens")),
        ("ms-swift", SWIFT | {"router_aux_loss_coef": 0, "enable_dft_loss": True}, (False, None, "tokens")),
        ("ms-swift", SWIFT, (False, None, "tokens")),
        ("trl", TRL | {"router_aux_loss_coef": 0.02}, (True, 0.02, "tokens")),
        ("trl", TRL, (False, None, "tokens")),
        ("trl", MIXTURE, (True, None, "tokens")),
        ("trl", MIXTURE | {"router_aux_loss_coef": 0.0}, (False, None, "tokens")),
        ("trl", MIXTURE | {"router_aux_loss_coef": 0.02}, (True, 0.02, "tokens")),
    ],
)
def test_a_file_trains_as_its_trainer_would_and_comes_back(
    dialect: str, file: dict[str, Any], expected: tuple[bool, float | None, str]
) -> None:
    run = run_of(dialect, file)
    assert not run.reasons
    assert asked(run.config) == expected
    assert tree(TRAINERS[dialect], run.config, set()) == file
    # Without the file, the keys are written anew.
    alone = tree(TRAINERS[dialect], run.config.model_copy(update={"origin": None}), set())
    again = run_of(dialect, load_yaml(to_yaml(alone), "export"))
    assert asked(again.config) == expected


@pytest.mark.parametrize(
    ("dialect", "file", "said"),
    [
        (
            "axolotl",
            AXOLOTL | {"model_config": ROUTED | {"rope_theta": 1e6}},
            "model_config={'output_router_logits': T",
        ),
        ("axolotl", AXOLOTL | {"model_config": {"num_experts_per_tok": 1}}, "model_config={'num_experts_per_tok': 1}"),
        ("axolotl", AXOLOTL | {"model_config": ROUTED, "overrides_of_model_config": ROUTED}, "overrides_of_model_con"),
        ("axolotl", AXOLOTL | {"model_config": {"router_aux_loss_coef": 0.1}}, "model_config.output_router_logits: mi"),
        ("axolotl", AXOLOTL | {"model_config": ROUTED, "sample_packing": True}, "model_config.output_router_logits=T"),
        ("axolotl", AXOLOTL | {"model_config": "routed"}, "model_config='routed': not a mapping"),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": 0.01, "neat_packing": True}, "moe_aux_loss_coef: with p"),
        ("llamafactory", LLAMAFACTORY | {"moe_aux_loss_coef": -0.01}, "moe_aux_loss_coef=-0.01: a weight is"),
        ("ms-swift", SWIFT | {"router_aux_loss_coef": 1e-3, "enable_dft_loss": True}, "router_aux_loss_coef: with ena"),
        (
            "ms-swift",
            SWIFT | {"router_aux_loss_coef": 1e-3, "gradient_accumulation_steps": None},
            "gradient_accumulation_steps=16: ms-swift weighs a batch's router loss",
        ),
        ("ms-swift", SWIFT | {"router_aux_loss_coef": "much"}, "router_aux_loss_coef='much': not a number"),
        ("trl", MIXTURE | {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2: TRL takes the mean of a"),
        ("trl", MIXTURE | {"loss_type": "dft"}, "loss_type=dft: TRL adds a router's loss to it"),
        ("trl", MIXTURE | {"packing": True}, "packing=True: a router's loss would count"),
        ("trl", TRL | {"router_aux_loss_coef": -1}, "router_aux_loss_coef=-1: a weight is"),
        ("trl", TRL | {"model_init_kwargs": {"output_router_logits": True}}, "model_init_kwargs="),
    ],
)
def test_what_trials_do_not_train_is_theirs(dialect: str, file: dict[str, Any], said: str) -> None:
    run = run_of(dialect, file)
    assert run.config.engine.name == "external"
    assert [reason for reason in run.reasons if reason.startswith(said)], run.reasons


def changed(dialect: str, **values: Any) -> SweepConfig:
    config = run_of(dialect, BASES[dialect]).config
    return replace(config, {key.replace("__", "."): value for key, value in values.items()})


@pytest.mark.parametrize(
    ("dialect", "values", "said"),
    [
        ("llamafactory", {}, r"^model\.router_aux_loss_coef=null: LLaMA-Factory needs the number"),
        ("ms-swift", {}, r"^model\.router_aux_loss_coef=null: ms-swift needs the number"),
        ("trl", {"training__gradient_accumulation_steps": 2}, r"^training\.gradient_accumulation_steps: TRL takes the"),
        ("axolotl", {"data__packing": True}, r"with sample_packing, Axolotl counts"),
        (
            "ms-swift",
            {"model__router_aux_loss_coef": 0.1, "training__gradient_accumulation_steps": 2},
            r"^model\.output_router_logits=true: with accumulation, ms-swift weighs",
        ),
        ("llamafactory", {"model__router_aux_loss_coef": 0.1, "data__packing": True}, r"LLaMA-Factory counts packed"),
        ("ms-swift", {"model__router_aux_loss_coef": 0.0}, r"^model\.output_router_logits=True: ms-swift trains with"),
        ("llamafactory", {"model__router_aux_loss_coef": 0.0}, r"^model\.output_router_logits=True: LLaMA-Factory tr"),
        ("trl", {"model__router_aux_loss_coef": 0.0}, r"^model\.router_aux_loss_coef=0: TRL then has no such loss"),
    ],
)
def test_what_a_trainer_cannot_express_is_not_exported(dialect: str, values: dict[str, Any], said: str) -> None:
    config = changed(dialect, model__output_router_logits=True, **values)
    with pytest.raises(InputError, match=said) as refused:
        tree(TRAINERS[dialect], config, set())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dialect", ["llamafactory", "ms-swift", "trl"])
def test_a_mean_of_batches_is_axolotls_alone(dialect: str) -> None:
    config = changed(dialect, training__mean_over="batches", training__gradient_accumulation_steps=2)
    with pytest.raises(
        InputError, match=r"^training\.mean_over=batches: with gradient accumulation, .* a step's tokens"
    ):
        tree(TRAINERS[dialect], config, set())
    # Without accumulation, both are the same.
    alone = replace(config, {"training.gradient_accumulation_steps": 1})
    assert tree(TRAINERS[dialect], alone, set())


def test_a_mean_of_tokens_is_told_in_axolotls_file() -> None:
    said = "# Trials took the mean over a step's tokens"
    for mean, steps, told in (("tokens", 2, True), ("tokens", 1, False), ("batches", 2, False)):
        config = changed("axolotl", training__mean_over=mean, training__gradient_accumulation_steps=steps)
        assert (said in TRAINERS["axolotl"].not_here(config)) is told


def test_the_fewest_changes_to_a_file() -> None:
    weighted = {"model.output_router_logits": True, "model.router_aux_loss_coef": 0.5}
    for dialect, key in (
        ("llamafactory", "moe_aux_loss_coef"),
        ("ms-swift", "router_aux_loss_coef"),
        ("trl", "router_aux_loss_coef"),
    ):
        config = replace(run_of(dialect, BASES[dialect]).config, weighted)
        assert tree(TRAINERS[dialect], config, set()) == BASES[dialect] | {key: 0.5}
    off = {"model.output_router_logits": False, "model.router_aux_loss_coef": None}
    mixture = replace(run_of("trl", MIXTURE).config, off)
    assert tree(TRAINERS["trl"], mixture, set()) == MIXTURE | {"router_aux_loss_coef": 0.0}
    file = AXOLOTL | {"overrides_of_model_config": ROUTED}
    routed = replace(run_of("axolotl", file).config, {"model.router_aux_loss_coef": 0.5})
    assert tree(TRAINERS["axolotl"], routed, set()) == AXOLOTL | {
        "model_config": ROUTED | {"router_aux_loss_coef": 0.5}
    }
    plain = replace(run_of("axolotl", file).config, off)
    assert tree(TRAINERS["axolotl"], plain, set()) == AXOLOTL


def test_a_dense_model_goes_to_trl_without_the_key() -> None:
    alone = run_of("trl", TRL).config.model_copy(update={"origin": None})
    assert "router_aux_loss_coef" not in tree(TRAINERS["trl"], alone, set())


def test_transformers_arguments_say_it_in_a_comment() -> None:
    dialect, config = TRAINERS["transformers"], changed("llamafactory", model__output_router_logits=True)
    assert " with output_router_logits=true, " in dialect.not_here(config)
    weighted = replace(config, {"model.router_aux_loss_coef": 0.25})
    assert " with output_router_logits=true, router_aux_loss_coef=0.25" in dialect.not_here(weighted)


def test_llamafactory_does_it_for_some_models_only_and_says_so() -> None:
    def noted(**keys: float) -> bool:
        run = run_of("llamafactory", LLAMAFACTORY | keys)
        return any("moe_aux_loss_coef has no effect there for other models" in note for note in run.notes)

    assert noted(moe_aux_loss_coef=0.01)
    assert not noted()


@pytest.mark.parametrize(
    ("name", "mixture"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", True),
        ("org/Qwen3-30B-A3B-Instruct", True),
        ("org/Qwen1.5-MoE-A2.7B", True),
        ("openai/gpt-oss-20b", True),
        ("allenai/OLMoE-1B-7B-0924", True),
        ("Qwen/Qwen2.5-0.5B", False),
        ("meta-llama/Llama-3.1-8B", False),
        ("", False),
    ],
)
def test_a_name_tells_a_mixture_as_far_as_names_do(name: str, mixture: bool) -> None:
    assert is_mixture(name) == mixture


def test_a_config_tells_a_mixture(tmp_path: Path) -> None:
    for content, mixture in (
        ({"num_local_experts": 8}, True),
        ({"text_config": {"num_experts": 8}}, True),
        ({"num_experts": 0}, False),
        ({}, False),
        ([], False),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert is_mixture(str(tmp_path)) == mixture
    (tmp_path / "config.json").write_text("{")
    assert not is_mixture(str(tmp_path))
