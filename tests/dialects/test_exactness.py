"""Nothing that changes training is imported as without effect, dropped, or written as something else."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lrsweep.config.schema import replace
from lrsweep.dialects import TRAINERS, sweep_file, tree
from lrsweep.dialects.file_editor import edited
from lrsweep.dialects.imported_run import Imported, Request
from lrsweep.dialects.importer import imported, without_secrets
from lrsweep.dialects.json_editor import with_changes
from lrsweep.dialects.reading import obstacles
from lrsweep.dialects.trial_file import of_trial
from lrsweep.dialects.yaml_reader import load_json, load_yaml
from lrsweep.errors import InputError

FILES: dict[str, dict[str, Any]] = {
    "llamafactory": {"model_name_or_path": "m", "dataset": "d", "template": "qwen", "max_steps": 9},
    "trl": {"model_name_or_path": "m", "dataset_name": "d", "packing": False, "max_steps": 9},
    "axolotl": {
        "base_model": "m",
        "datasets": [{"path": "d", "type": "completion"}],
        "learning_rate": 1e-4,
        "max_steps": 9,
    },
    "ms-swift": {
        "model": "./m",
        "dataset": "d.jsonl",
        "template_backend": "jinja",
        "max_length": 9,
        "max_steps": 9,
    },
}


@pytest.mark.parametrize(
    ("dialect", "name", "same", "other"),
    [
        ("llamafactory", "ignore_pad_token_for_loss", True, False),
        ("llamafactory", "use_fast_tokenizer", True, False),
        ("axolotl", "bnb_config_kwargs", {"bnb_4bit_quant_type": "nf4"}, {"bnb_4bit_quant_type": "fp4"}),
        ("axolotl", "liger_use_token_scaling", False, True),
        ("ms-swift", "train_dataloader_shuffle", True, False),
        ("ms-swift", "bnb_4bit_quant_type", "nf4", "fp4"),
        ("ms-swift", "bnb_4bit_compute_dtype", "bfloat16", "float16"),
        ("ms-swift", "loss_scale", "last_round+ignore_empty_think", "default+react"),
    ],
)
def test_a_key_that_changes_training_is_no_harmless_one(dialect: str, name: str, same: Any, other: Any) -> None:
    trainer, before = TRAINERS[dialect], {str(fault) for fault in obstacles(TRAINERS[dialect], FILES[dialect])}
    assert {str(fault) for fault in obstacles(trainer, FILES[dialect] | {name: same})} == before
    added = [str(fault) for fault in obstacles(trainer, FILES[dialect] | {name: other}) if str(fault) not in before]
    assert [fault.partition("=")[0] for fault in added] == [name]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b": [2], "c": 3}', '{\n  "a": 1,\n  "b": [2],\n  "c": 3\n}\n', "{}", "{ }"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"a": None},
        {"c": None},
        {"a": None, "b": None},
        {"b": None, "c": None},
        {"a": None, "b": None, "c": None},
        {"a": None, "b": None, "c": None, "d": "new", "e": [1]},
        {"a": None, "c": 4, "d": {"x": 1}},
        {},
    ],
)
def test_json_stays_json_whatever_is_removed(text: str, changes: dict[str, Any]) -> None:
    wanted = {name: value for name, value in {**json.loads(text), **changes}.items() if value is not None}
    found = with_changes(text, changes)
    assert json.loads(found) == wanted
    assert found.count("\n") >= text.count("\n") - 3


def test_an_edited_json_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps(FILES["trl"] | {"learning_rate": 1e-4}))
    config = replace(imported("trl", FILES["trl"], "f.json", Request("theirs")).config, {"optimizer.lr": 3e-4})
    assert json.loads(edited(TRAINERS["trl"], file, config, {"optimizer.lr"}, None, ""))["learning_rate"] == 3e-4
    monkeypatch.setattr("lrsweep.dialects.json_editor.with_changes", lambda text, changes: text)
    with pytest.raises(InputError, match="cannot be changed without touching other keys"):
        edited(TRAINERS["trl"], file, config, {"optimizer.lr"}, None, "")


ODD: list[tuple[str, dict[str, Any]]] = [
    ("ms-swift", {"columns": "a:b"}),
    ("ms-swift", {"columns": [1]}),
    ("ms-swift", {"dataset": 5}),
    ("ms-swift", {"dataset": {"a": 1}}),
    ("ms-swift", {"val_dataset": 5}),
    ("ms-swift", {"target_modules": 5}),
    ("trl", {"lora_target_modules": 5, "use_peft": True}),
    ("trl", {"lora_target_modules": {"a": 1}, "use_peft": True}),
    ("trl", {"datasets": [{"path": "json", "data_files": ["a.json"]}], "dataset_name": None}),
    ("trl", {"datasets": ["x"], "dataset_name": None}),
    ("axolotl", {"special_tokens": ["x"]}),
    ("axolotl", {"datasets": ["x"]}),
    ("axolotl", {"datasets": 5}),
    ("axolotl", {"plugins": 5}),
    ("axolotl", {"datasets": [{"path": "d", "type": "chat_template", "roles_to_train": 5}]}),
    ("axolotl", {"datasets": [{"path": "d", "type": "chat_template", "message_property_mappings": ["x"]}]}),
    ("axolotl", {"datasets": [{"path": ["d"], "type": ["chat_template"], "data_files": [1]}]}),
    ("axolotl", {"lora_target_modules": 5, "adapter": "lora", "lora_r": 8, "lora_alpha": 8}),
]


@pytest.mark.parametrize(("dialect", "keys"), ODD)
@pytest.mark.parametrize("request_", [Request(data_dir="/x"), Request("ours"), Request("theirs")], ids=str)
def test_an_odd_value_gets_a_sweep_or_one_line(dialect: str, keys: dict[str, Any], request_: Request) -> None:
    told = ""
    try:
        assert imported(dialect, FILES[dialect] | keys, "f.yaml", request_).config
    except InputError as fault:
        told = str(fault)
    assert "\n" not in told


@pytest.mark.parametrize(
    "text", ['{"a": ' + "9" * 5000 + "}", '{"a": ' + "[" * 400 + "]" * 400 + "}"], ids=["digits", "depth"]
)
def test_json_beyond_all_bounds_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^f\.json"):
        load_json(text, "f.json")


def test_data_files_in_a_list_move_with_the_folder() -> None:
    entry = {"path": "json", "data_files": ["a.json", "b.json"]}
    moved = TRAINERS["trl"].relocated({"datasets": [entry]}, None, "/x")
    assert moved["datasets"] == [{"path": "json", "data_files": ["/x/a.json", "/x/b.json"]}]


def test_secrets_in_lists_are_left_out() -> None:
    token = "hf_" + "x" * 30
    kept, dropped = without_secrets({"a": [{"hf_token": token, "b": 1}, [{"api_key": "k" * 20}]], "tags": ["t", token]})
    assert kept == {"a": [{"b": 1}, [{}]], "tags": ["t"]}
    assert dropped == ["a[0].hf_token", "a[1][0].api_key", "tags[1]"]


@pytest.mark.parametrize("name", ["out/${USER}", "a\\${b}", "plain\\", "tab\t${x}"])
def test_a_value_that_looks_like_an_interpolation_is_kept(name: str) -> None:
    given = FILES["trl"] | {"model_name_or_path": name, "run_name": name}
    run = imported("trl", given, "f ${x}.yaml", Request("theirs", "trl sft --config {config} --run ${RUN}"))
    sweep = OmegaConf.to_container(OmegaConf.create(sweep_file.text(run, "s")), resolve=True)
    assert isinstance(sweep, dict)
    assert sweep["model"]["path"] == name
    assert sweep["engine"]["command"] == "trl sft --config {config} --run ${RUN}"
    assert sweep["origin"]["file"] == "f ${x}.yaml"
    assert load_yaml(sweep["origin"]["base"], "base") == given


def theirs(dialect: str, **keys: Any) -> Imported:
    return imported(dialect, FILES[dialect] | keys, "f.yaml", Request("theirs"))


def test_what_the_command_line_changes_reaches_their_file() -> None:
    config = theirs("llamafactory").config
    assert tree(TRAINERS["llamafactory"], config, {"optimizer.lr"})["model_name_or_path"] == "m"
    changed = replace(config, {"model.path": "other", "data.max_length": 77, "data.eval_fraction": 0.3})
    found = tree(TRAINERS["llamafactory"], changed, {"optimizer.lr"})
    assert [found[name] for name in ("model_name_or_path", "cutoff_len", "val_size")] == ["other", 77, 0.3]


@pytest.mark.parametrize(
    ("dialect", "keys", "name", "value"),
    [
        ("llamafactory", {}, "data.max_train_rows", 5),
        ("llamafactory", {"quantization_bit": 3}, "model.quantization", "4bit"),
        ("ms-swift", {"loss_scale": "react"}, "data.max_length", 77),
    ],
)
def test_what_cannot_reach_their_file_is_refused(dialect: str, keys: dict[str, Any], name: str, value: Any) -> None:
    config = replace(theirs(dialect, **keys).config, {name: value})
    with pytest.raises(InputError, match=f"^{name}: "):
        tree(TRAINERS[dialect], config, {"optimizer.lr"})


@pytest.mark.parametrize("dialect", ["trl", "ms-swift"])
def test_a_number_of_rows_is_no_share(dialect: str) -> None:
    config = theirs(dialect).config
    assert of_trial(TRAINERS[dialect], FILES[dialect], config, Path("out"))
    for_rows = replace(config, {"data.eval_fraction": 100.0})
    with pytest.raises(InputError, match=r"^data\.eval_fraction=100: .* a share of the rows only; set it below 1$"):
        of_trial(TRAINERS[dialect], FILES[dialect], for_rows, Path("out"))
    row = next(row for row in TRAINERS[dialect].rows(None) if "data.eval_fraction" in row.ours)
    with pytest.raises(InputError, match="a share of the rows only"):
        row.write(for_rows)


LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16}


@pytest.mark.parametrize(
    ("dialect", "keys"), [("llamafactory", {"optim": "adamw_torch", "weight_decay": 0.1}), ("axolotl", LORA)]
)
def test_lora_plus_is_ours_and_comes_back(dialect: str, keys: dict[str, Any]) -> None:
    run = imported(dialect, FILES[dialect] | keys | {"loraplus_lr_ratio": 16}, "f.yaml")
    assert not run.reasons
    assert run.config.finetune.loraplus_lr_ratio == 16
    config = replace(run.config, {"finetune.loraplus_lr_ratio": 4.0})
    assert tree(TRAINERS[dialect], config, {"finetune.loraplus_lr_ratio"})["loraplus_lr_ratio"] == 4


@pytest.mark.parametrize(
    ("dialect", "keys", "said"),
    [
        ("axolotl", LORA | {"weight_decay": 0.1}, "weight_decay=0.1: Axolotl leaves it out with LoRA+"),
        (
            "llamafactory",
            {"lora_target": "q_proj,embed_tokens"},
            "loraplus_lr_ratio: with lora_target=q_proj,embed_tokens",
        ),
    ],
)
def test_lora_plus_that_learns_otherwise_is_not(dialect: str, keys: dict[str, Any], said: str) -> None:
    run = imported(dialect, FILES[dialect] | keys | {"loraplus_lr_ratio": 16}, "f.yaml")
    assert [reason for reason in run.reasons if reason.startswith(said)]


def test_lora_plus_is_not_dropped_by_who_has_none() -> None:
    config = imported("llamafactory", FILES["llamafactory"] | {"loraplus_lr_ratio": 16}, "f.yaml").config
    for name in ("trl", "ms-swift"):
        row = next(row for row in TRAINERS[name].rows(None) if "finetune.loraplus_lr_ratio" in row.ours)
        with pytest.raises(InputError, match=r"^finetune\.loraplus_lr_ratio=16: .* has no key for LoRA\+"):
            row.write(config)
    assert "LoRA+" in TRAINERS["transformers"].not_here(config)


@pytest.mark.parametrize(
    ("dialect", "keys", "init"),
    [
        ("llamafactory", {"pissa_init": True}, "pissa_niter_16"),
        ("llamafactory", {"pissa_init": True, "pissa_iter": -1}, "pissa"),
        ("llamafactory", {"pissa_init": False, "pissa_iter": 4}, True),
        ("axolotl", LORA | {"peft_init_lora_weights": "olora"}, "olora"),
        ("axolotl", LORA | {"peft_init_lora_weights": True}, True),
        ("ms-swift", {"init_weights": "gaussian"}, "gaussian"),
        ("ms-swift", {"init_weights": "true"}, True),
    ],
)
def test_a_start_of_lora_is_ours_and_comes_back(dialect: str, keys: dict[str, Any], init: bool | str) -> None:
    run = imported(dialect, FILES[dialect] | keys, "f.yaml")
    assert not run.reasons
    assert run.config.finetune.init_lora_weights == init
    row = next(row for row in TRAINERS[dialect].rows(None) if "finetune.init_lora_weights" in row.ours)
    assert row.read({**FILES[dialect], **keys, **row.write(run.config)})["finetune.init_lora_weights"] == init


@pytest.mark.parametrize(
    ("dialect", "keys", "said"),
    [
        ("llamafactory", {"pissa_init": True, "pissa_iter": 0}, "pissa_iter=0: trials do 1 to 99 iterations"),
        ("axolotl", LORA | {"peft_init_lora_weights": "eva"}, "peft_init_lora_weights=eva: trials start with true"),
        ("ms-swift", {"init_weights": "lora-ga"}, "init_weights=lora-ga: trials start with true"),
    ],
)
def test_a_start_that_we_do_not_have_is_theirs(dialect: str, keys: dict[str, Any], said: str) -> None:
    run = imported(dialect, FILES[dialect] | keys, "f.yaml")
    assert [reason for reason in run.reasons if reason.startswith(said)], run.reasons


def test_a_start_is_not_dropped_by_who_has_none() -> None:
    keys = LORA | {"peft_init_lora_weights": "olora", "lora_target_linear": True}
    config = imported("axolotl", FILES["axolotl"] | keys, "f.yaml").config
    for name in ("trl", "llamafactory"):
        row = next(row for row in TRAINERS[name].rows(None) if "finetune.init_lora_weights" in row.ours)
        with pytest.raises(InputError, match=r"^finetune\.init_lora_weights=olora: "):
            row.write(config)


FLASH = {"attn_implementation": "flash_attention_2"}
SHARDED = {"deepspeed": "zero2.json"}
FULL_TRL = {"model_name_or_path": "m", "dataset_name": "d", "assistant_only_loss": True}
FULL_SWIFT = FILES["ms-swift"] | {"tuner_type": "full", "torch_dtype": "bfloat16", "learning_rate": 1e-5}
FULL_LLAMAFACTORY = FILES["llamafactory"] | {"finetuning_type": "full"}


@pytest.mark.parametrize(
    ("dialect", "file", "pure"),
    [
        ("axolotl", FILES["axolotl"] | FLASH, True),
        ("axolotl", FILES["axolotl"] | {"flash_attention": True, "bf16": True}, True),
        ("axolotl", FILES["axolotl"] | {"plugins": ["axolotl.integrations.cut_cross_entropy.X"]}, True),
        ("axolotl", FILES["axolotl"] | FLASH | {"bf16": False}, False),
        ("axolotl", FILES["axolotl"] | FLASH | {"fsdp_config": {"offload_params": True}}, False),
        ("axolotl", FILES["axolotl"] | SHARDED, False),
        ("trl", FULL_TRL | {"dtype": "bfloat16"}, True),
        ("trl", FULL_TRL | {"dtype": "bfloat16"} | SHARDED, False),
        ("trl", FULL_TRL, False),
        ("trl", FULL_TRL | {"dtype": "bfloat16", "accelerate_config": "zero2"}, False),
        ("trl", FULL_TRL | {"dtype": "bfloat16", "accelerate_config": "multi_gpu"}, True),
        ("ms-swift", FULL_SWIFT | {"torch_dtype": "float32", "bf16": True}, False),
        ("trl", FULL_TRL | {"dtype": "bfloat16", "use_peft": True, "lora_target_modules": "all-linear"}, False),
        ("ms-swift", FULL_SWIFT, True),
        ("ms-swift", FULL_SWIFT | SHARDED, False),
        ("ms-swift", FULL_SWIFT | {"torch_dtype": "float32"}, False),
        ("llamafactory", FULL_LLAMAFACTORY | {"pure_bf16": True}, True),
        ("llamafactory", FULL_LLAMAFACTORY | {"bf16": True}, False),
    ],
)
def test_whole_weights_are_trained_in_the_dtype_that_their_trainer_keeps_them_in(
    dialect: str, file: dict[str, Any], pure: bool
) -> None:
    """PyTorch trains a weight in the dtype it was loaded in; DeepSpeed and FSDP train a float32 copy."""
    run = imported(dialect, file, "f.yaml")
    assert not run.reasons
    assert run.config.finetune.pure_bf16 == pure
    assert tree(TRAINERS[dialect], run.config, set()) == file
    if pure:
        without = run.config.model_copy(update={"origin": None})
        again = imported(dialect, tree(TRAINERS[dialect], without, set()), "f.yaml")
        assert again.config.finetune == run.config.finetune


@pytest.mark.parametrize(
    ("dialect", "file", "said"),
    [
        ("axolotl", FILES["axolotl"], "attn_implementation: without flash attention, Axolotl trains norms"),
        ("axolotl", FILES["axolotl"] | {"sdp_attention": True}, "attn_implementation: without flash attention"),
        (
            "axolotl",
            FILES["axolotl"] | {"plugins": ["axolotl.integrations.cut_cross_entropy.X"], "cut_cross_entropy": False},
            "attn_implementation: without flash attention",
        ),
        ("trl", FULL_TRL | {"dtype": "auto"}, "dtype=auto: the trained weights are in it"),
        ("trl", FULL_TRL | {"dtype": "bfloat16", "accelerate_config": "my.yaml"}, "accelerate_config=my.yaml: it may"),
        ("ms-swift", FULL_SWIFT | {"torch_dtype": None, "bf16": True}, "torch_dtype=None: ms-swift then trains"),
        ("trl", FULL_TRL | {"dtype": "bfloat16", "bf16": False}, "bf16=False: with dtype=bfloat16"),
        ("ms-swift", FULL_SWIFT | {"torch_dtype": None}, "torch_dtype=None: ms-swift then trains the weights in"),
        (
            "llamafactory",
            FILES["llamafactory"] | {"pure_bf16": True},
            "pure_bf16=True: trials keep adapters in float32",
        ),
    ],
)
def test_weights_in_a_dtype_that_trials_do_not_train_are_theirs(dialect: str, file: dict[str, Any], said: str) -> None:
    assert [reason for reason in imported(dialect, file, "f.yaml").reasons if reason.startswith(said)]


def test_an_export_says_that_its_weights_were_in_float32() -> None:
    file = FILES["axolotl"] | FLASH | SHARDED
    config = imported("axolotl", file, "f.yaml").config
    assert "Trials kept the trained weights in float32" in TRAINERS["axolotl"].not_here(config)
    pure = replace(config, {"finetune.pure_bf16": True})
    assert "float32" not in TRAINERS["axolotl"].not_here(pure)
    row = next(row for row in TRAINERS["ms-swift"].rows(None) if "finetune.pure_bf16" in row.ours)
    with pytest.raises(InputError, match=r"^model\.dtype=auto: ms-swift needs to know it"):
        row.write(config)


SWIFT = FILES["ms-swift"]


@pytest.mark.parametrize(
    "keys",
    [
        {"system": "Be brief.", "template": "qwen2_5"},
        {"dataset": ["AI-ModelScope/alpaca-gpt4-data-zh#500", "swift/self-cognition#500"], "model_name": ["a", "b"]},
        {"agent_template": "hermes", "loss_scale": "last_round+ignore_empty_think"},
        {"columns": {"text1": "query"}, "val_dataset": ["held_out.jsonl"]},
        {"model_type": "qwen3", "cached_dataset": ["c"], "cached_val_dataset": ["v"]},
        {"max_length": None},
    ],
)
def test_rows_of_ms_swift_are_made_by_ms_swift(keys: dict[str, Any]) -> None:
    """Its templates and data sets are its own code: trials learn the tokens that this code makes."""
    file = {name: value for name, value in (SWIFT | keys).items() if value is not None}
    run = imported("ms-swift", file, "f.yaml")
    assert not run.reasons
    data = run.config.data
    assert (data.format, data.tokenized_by) == ("tokens", "ms-swift")
    # The run's length is not a matter of its rows.
    assert data.trainer_config == {name: value for name, value in file.items() if name != "max_steps"}
    assert tree(TRAINERS["ms-swift"], run.config, set()) == file
    alone = tree(TRAINERS["ms-swift"], run.config.model_copy(update={"origin": None}), set())
    assert {name: alone.get(name) for name in data.trainer_config} == data.trainer_config
    assert "split_dataset_ratio" not in alone or not keys.keys() & {"val_dataset", "cached_val_dataset"}
    changed = replace(run.config, {"data.max_length": 5})
    row = next(row for row in TRAINERS["ms-swift"].rows(None) if "data.tokenized_by" in row.ours)
    with pytest.raises(InputError, match=r"^data\.max_length=5: ms-swift made the rows with another"):
        row.write(changed)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss_scale": "react"}, "loss_scale=react: trials learn the answers, each token alike"),
        ({"truncation_strategy": "split"}, "truncation_strategy=split: it makes several rows of one"),
        ({"packing": True, "max_length": None}, "max_length: missing, so blocks have the model's own length"),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "Qwen/Qwen2.5-VL-7B-Instruct: it is not of text alone"),
        ({"dataset": ["AI-ModelScope/LaTeX_OCR:human_handwrite#2000"]}, "AI-ModelScope/LaTeX_OCR"),
        ({"streaming": True}, "streaming=True: trials draw whole rows at random"),
        ({"cached_val_dataset": ["v"], "split_dataset_ratio": 0.1}, "split_dataset_ratio: beside cached_val_dataset"),
    ],
)
def test_rows_that_trials_cannot_learn_are_theirs(keys: dict[str, Any], said: str) -> None:
    file = {name: value for name, value in (SWIFT | keys).items() if value is not None}
    assert [reason for reason in imported("ms-swift", file, "f.yaml").reasons if reason.startswith(said)]


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ({"dataset": ["a/b#500", "c/d#20"]}, 520),
        ({"dataset": ["a/b#500"], "split_dataset_ratio": 0.1}, 450),
        ({"dataset": ["a/b#500"], "split_dataset_ratio": 0.1, "val_dataset": ["v.jsonl"]}, 500),
        ({"dataset": ["three.jsonl", "a/b#7"]}, 10),
        ({"dataset": ["a/b"]}, None),
        ({"dataset": ["missing.jsonl"]}, None),
        ({"dataset": ["three.jsonl"], "cached_dataset": ["c"]}, None),
    ],
)
def test_a_run_of_ms_swift_is_as_long_as_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], rows: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("three.jsonl").write_text('{"query": "a", "response": "b"}\n' * 3)
    file = {name: value for name, value in (SWIFT | keys).items() if name != "max_steps"}
    run = imported("ms-swift", file | {"num_train_epochs": 1, "gradient_accumulation_steps": 1}, "f.yaml")
    assert not run.reasons
    assert run.config.training.horizon == rows
    assert any("length in steps is not known" in note for note in run.notes) == (rows is None)


def test_a_trainer_that_is_not_there_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = imported("ms-swift", SWIFT, "f.yaml")
    assert not run.reasons
    assert any("swift is not on PATH" in note for note in run.notes)
    found = imported("ms-swift", SWIFT, "f.yaml", Request(python=sys.executable))
    assert found.config.data.python == sys.executable
    assert not any("swift" in note for note in found.notes)


def test_an_export_of_other_rows_says_whose_template_it_is() -> None:
    config = replace(
        imported("ms-swift", SWIFT | {"torch_dtype": "bfloat16"}, "f.yaml").config,
        {"data": {"path": "rows.jsonl", "format": "messages", "train_on_prompt": True}},
    )
    config = config.model_copy(update={"origin": None})
    found = tree(TRAINERS["ms-swift"], config, set())
    assert (found["dataset"], found["loss_scale"]) == (["rows.jsonl"], "all")
    assert "by its own template of the model. The trials learned whole" in TRAINERS["ms-swift"].not_here(config)
    of_tokens = imported("ms-swift", SWIFT, "f.yaml").config
    row = next(row for row in TRAINERS["llamafactory"].rows(None) if "data.path" in row.ours)
    with pytest.raises(InputError, match=r"^data\.format=tokens: LLaMA-Factory reads rows of text"):
        row.write(of_tokens)


def test_a_model_on_modelscope_goes_to_ms_swift_alone() -> None:
    config = imported("ms-swift", SWIFT | {"model": "org/model"}, "f.yaml").config
    assert config.model.path == "modelscope:org/model"
    for name in ("axolotl", "trl", "llamafactory"):
        row = next(row for row in TRAINERS[name].rows(None) if "model.path" in row.ours)
        with pytest.raises(InputError, match=r"only ms-swift takes models from ModelScope"):
            row.write(config)
    on_hub = replace(config, {"data": {"path": "org/rows", "format": "messages"}})
    row = next(row for row in TRAINERS["ms-swift"].rows(None) if "data.path" in row.ours)
    with pytest.raises(InputError, match=r"takes both from one"):
        row.write(on_hub)
