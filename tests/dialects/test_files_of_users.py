"""Configs and data as users have them: what each is imported as, and what is said of it."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from lrsweep import dialects
from lrsweep.config.schema import replace
from lrsweep.config.trial_schema import DataConfig, ModelConfig
from lrsweep.dialects.imported_run import Imported, Request
from lrsweep.dialects.importer import imported
from lrsweep.errors import InputError
from lrsweep.training.data.formats import Chat, Plain, parse
from lrsweep.training.data.loading import count_rows, load
from lrsweep.training.model import load_tokenizer
from tests.training.data.test_loading import tokenizer_with

CHAT = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}."}]}
    for n in range(12)
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"Say {n}"}, {"from": "gpt", "value": "x"}]} for n in range(12)
]
ALPACA = [{"instruction": f"Say {n}", "input": "", "output": f"Number {n}."} for n in range(12)]
LLAMAFACTORY = {
    "model_name_or_path": "m",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "all",
    "dataset": "demo",
    "learning_rate": 1e-4,
    "cutoff_len": 128,
}
AXOLOTL = {
    "base_model": "m",
    "datasets": [{"path": "train.jsonl", "ds_type": "json", "type": "chat_template"}],
    "val_set_size": 0.1,
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "sequence_len": 128,
    "learning_rate": 2e-4,
    "lora_target_linear": True,
}
TRL = {"model_name_or_path": "m", "learning_rate": 2e-5, "max_length": 128}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines("train.jsonl", CHAT)
    dataset("demo", ALPACA)
    return tmp_path


def lines(name: str, rows: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def dataset(name: str, rows: list[Any], **entry: Any) -> None:
    Path("data").mkdir(exist_ok=True)
    Path("data", f"{name}.json").write_text(json.dumps(rows))
    Path("data/dataset_info.json").write_text(json.dumps({name: {"file_name": f"{name}.json", **entry}}))


def llamafactory(**changes: Any) -> Imported:
    return imported("llamafactory", LLAMAFACTORY | changes, "train.yaml")


def axolotl(**changes: Any) -> Imported:
    return imported("axolotl", AXOLOTL | changes, "train.yml")


@pytest.mark.parametrize(
    ("dialect", "tree", "because"),
    [
        ("llamafactory", LLAMAFACTORY | {"use_asft_loss": True}, "use_asft_loss=True: with LoRA"),
        (
            "llamafactory",
            LLAMAFACTORY | {"use_asft_loss": True, "use_dft_loss": True, "finetuning_type": "full"},
            "use_asft_loss=True: it goes with no other",
        ),
        (
            "llamafactory",
            LLAMAFACTORY | {"use_asft_loss": True, "neat_packing": True, "finetuning_type": "full"},
            "use_asft_loss=True: packed",
        ),
        ("axolotl", AXOLOTL | {"plugins": ["axolotl.integrations.kd.KDPlugin"], "kd_trainer": True}, "kd_trainer=True"),
        ("axolotl", AXOLOTL | {"kd_ce_alpha": 0.1}, "kd_ce_alpha=0.1"),
        ("axolotl", AXOLOTL | {"use_onebitllms": True}, "use_onebitllms=True"),
        ("axolotl", AXOLOTL | {"spectrum_top_fraction": 0.5}, "spectrum_top_fraction=0.5"),
        ("axolotl", AXOLOTL | {"model_config": {"num_experts_per_tok": 1}}, "model_config="),
        (
            "trl",
            TRL | {"dtype": "float16", "datasets": [{"path": "json", "data_files": "train.jsonl"}]},
            "dtype=float16",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_another_training_is_never_imported_in_silence(dialect: str, tree: dict[str, Any], because: str) -> None:
    run = imported(dialect, tree, "f.yaml")
    assert run.config.engine.name == "external"
    assert any(reason.startswith(because) for reason in run.reasons), run.reasons


@pytest.mark.parametrize(
    ("dialect", "keys", "loss", "alpha"),
    [
        ("llamafactory", {"use_dft_loss": True}, "dft", 1.0),
        ("llamafactory", {"use_eaft_loss": True}, "eaft", 1.0),
        ("llamafactory", {"use_eaft_loss": True, "eaft_alpha": 0.5}, "eaft", 0.5),
        ("llamafactory", {"use_asft_loss": True, "asft_alpha": 0.5, "finetuning_type": "full"}, "asft", 0.5),
        ("llamafactory", {"use_eaft_loss": False}, "cross_entropy", 1.0),
        ("trl", {"loss_type": "dft"}, "dft", 1.0),
        ("trl", {"loss_type": "chunked_nll"}, "cross_entropy", 1.0),
    ],
)
def test_a_loss_with_weights_is_ours(dialect: str, keys: dict[str, Any], loss: str, alpha: float) -> None:
    file = LLAMAFACTORY if dialect == "llamafactory" else TRL | {"dataset_name": "org/rows"}
    run = imported(dialect, file | keys, "f.yaml")
    training = run.config.training
    found = training.asft_alpha if loss == "asft" else training.eaft_alpha
    assert (run.reasons, training.loss, found) == ((), loss, alpha)
    assert any("without its weights" in note for note in run.notes) == (loss != "cross_entropy")


@pytest.mark.parametrize(
    ("dialect", "keys", "double"),
    [
        ("llamafactory", {"quantization_bit": 4}, True),
        ("llamafactory", {"quantization_bit": 4, "double_quantization": False}, False),
        ("trl", {"load_in_4bit": True, "use_peft": True}, False),
        ("trl", {"load_in_4bit": True, "use_peft": True, "use_bnb_nested_quant": True}, True),
        ("axolotl", {"load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_quant_type": "nf4"}}, True),
        ("axolotl", {"load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}, False),
    ],
)
def test_a_base_is_quantized_as_the_file_says(dialect: str, keys: dict[str, Any], double: bool) -> None:
    adapter = {"adapter": "qlora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
    file = {"llamafactory": LLAMAFACTORY, "trl": TRL | {"dataset_name": "org/rows"}, "axolotl": AXOLOTL | adapter}
    run = imported(dialect, file[dialect] | keys, "f.yaml")
    model = run.config.model
    assert (run.reasons, model.quantization, model.double_quantization) == ((), "4bit", double)


def test_tokens_that_are_there_replace_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = llamafactory(tokenized_path="tokens")
    assert run.reasons == ()
    assert any(note.startswith("tokenized_path stays") for note in run.notes)
    (tmp_path / "tokens").mkdir()
    assert [reason.partition(":")[0] for reason in llamafactory(tokenized_path="tokens").reasons] == [
        "tokenized_path=tokens"
    ]


def test_a_dataset_info_on_the_hub_is_not_fetched_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("fetched"))
    run = llamafactory(dataset_dir="REMOTE:org/rows", dataset="one")
    assert (run.reasons, run.config.data.path, run.config.training.horizon) == ((), "REMOTE:org/rows", None)


def test_a_data_set_that_is_not_in_the_info_yet_is_no_reason_to_train_elsewhere() -> None:
    run = llamafactory(dataset="later")
    assert run.reasons == ()
    assert any("no such data set" in note and note.endswith("or with --data-dir") for note in run.notes)


@pytest.mark.parametrize(
    ("keys", "schedule", "arguments"),
    [
        ({"cosine_min_lr_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ({"cosine_min_lr_ratio": 1.0, "cosine_constant_lr_ratio": 0}, "cosine_with_min_lr", {"min_lr_rate": 1.0}),
        ({"cosine_min_lr_ratio": 0, "cosine_constant_lr_ratio": 0.5}, "cosine", {}),
        ({"cosine_constant_lr_ratio": 0.5}, "cosine", {}),
        ({"cosine_min_lr_ratio": 0.1, "lr_scheduler": "linear"}, "linear", {}),
    ],
)
def test_axolotls_lowest_rate(keys: dict[str, Any], schedule: str, arguments: dict[str, float]) -> None:
    run = axolotl(**keys)
    assert (run.reasons, run.config.scheduler.name, run.config.scheduler.kwargs) == ((), schedule, arguments)


@pytest.mark.parametrize(
    "keys",
    [
        {"cosine_min_lr_ratio": 0.1, "cosine_constant_lr_ratio": 0.5},
        {"cosine_min_lr_ratio": 0.1, "lr_scheduler_kwargs": {"num_cycles": 1}},
        {"cosine_min_lr_ratio": 1.5},
        {"batch_size": 4, "gradient_accumulation_steps": 4},
        {"batch_size": 2, "micro_batch_size": 4},
    ],
)
def test_what_axolotl_reads_otherwise_is_trained_there(keys: dict[str, Any]) -> None:
    assert len(axolotl(**keys).reasons) == 1


def test_axolotls_rows_of_a_step_are_accumulated() -> None:
    run = axolotl(batch_size=9, micro_batch_size=2, lora_fan_in_fan_out=True, fp8=True)
    training = run.config.training
    assert (run.reasons, training.batch_size, training.gradient_accumulation_steps) == ((), 2, 4)
    assert any(note.startswith("fp8 stays") for note in run.notes)


def test_fp8_is_trained_with_a_note() -> None:
    run = llamafactory(fp8=True, fp8_backend="torchao")
    assert run.reasons == ()
    assert any(note.startswith("fp8 stays") for note in run.notes)


def test_their_loss_with_weights_ranks_with_a_warning() -> None:
    for keys, warned in (({"use_dft_loss": True}, True), ({}, False)):
        run = imported("llamafactory", LLAMAFACTORY | keys, "f.yaml", Request("theirs"))
        assert any("has the weights of dft in it" in note for note in run.notes) == warned


def test_harmless_sections_stay() -> None:
    run = llamafactory(ray_num_workers=4, resources_per_worker={"GPU": 1})
    assert (run.reasons, set(run.kept) >= {"ray_num_workers", "resources_per_worker"}) == ((), True)


def test_fp16_is_trained_with_a_note() -> None:
    run = llamafactory(fp16=True)
    assert run.reasons == ()
    assert any(note.startswith("fp16 stays; trials train in bf16 or float32") for note in run.notes)


def test_lists_are_read_as_llamafactory_reads_them() -> None:
    run = llamafactory(dataset=["demo"], lora_target=["q_proj", "v_proj"]).config
    assert (run.data.name, run.finetune.target_modules) == ("demo", ("q_proj", "v_proj"))


def test_a_number_of_rows_is_held_out() -> None:
    run = llamafactory(val_size=3, per_device_train_batch_size=1, num_train_epochs=1.0).config
    assert (run.data.eval_fraction, run.training.horizon) == (3, 9)
    assert axolotl(val_set_size=5).config.data.eval_fraction == 5
    found = load(data("train.jsonl", "messages", eval_fraction=3), tokenizer_with(CHATML))
    assert (len(found.train), len(found.evaluation)) == (9, 3)


def test_what_kind_of_training_was_guessed_is_said() -> None:
    """A file for `trl dpo` need have no key that `trl sft` lacks."""
    both = TRL | {"dataset_name": "d"}
    assert any("taken for trl sft" in note for note in imported("trl", both, "t.yaml").notes)
    for told in (both | {"packing": False}, both | {"beta": 0.1}):
        assert not any("taken for" in note for note in imported("trl", told, "t.yaml").notes)
    by_command = imported("trl", both, "t.yaml", Request(command="trl dpo --config {config}"))
    assert by_command.config.engine.command == "trl dpo --config {config}"
    assert not any("taken for" in note for note in by_command.notes)


def test_trl_learns_whole_conversations_from_a_file_and_from_the_hub() -> None:
    local = imported("trl", TRL | {"datasets": [{"path": "json", "data_files": "train.jsonl"}]}, "f").config
    hub = imported("trl", TRL | {"dataset_name": "trl-lib/Capybara"}, "f")
    assert (local.data.format, local.data.train_on_prompt) == ("messages", True)
    assert (hub.missing, hub.config.data.train_on_prompt) == (("data.format",), True)
    whole, answers = (
        load(data("train.jsonl", "messages", train_on_prompt=whole), tokenizer_with(CHATML)) for whole in (True, False)
    )
    assert [sum(label >= 0 for label in example.labels) for example in whole.train] == [
        len(example.input_ids) - 1 for example in whole.train
    ]
    assert [example.input_ids for example in whole.train] == [example.input_ids for example in answers.train]
    assert whole.train[0].labels != answers.train[0].labels


def test_axolotls_regular_expression_of_targets_stays_one() -> None:
    regex = r"model.layers.[\d]+.(mlp|self_attn).(up|down|gate|q|k|v|o)_proj"
    run = axolotl(lora_target_linear=None, lora_target_modules=regex)
    assert (run.reasons, run.config.finetune.target_modules) == ((), regex)
    trl = TRL | {"use_peft": True, "lora_target_modules": [regex], "dataset_name": "a/b"}
    assert imported("trl", trl, "f").config.finetune.target_modules == regex
    assert imported("trl", TRL | {"use_peft": True, "dataset_name": "a/b"}, "f").config.finetune.target_modules is None


def test_axolotls_older_spelling_of_the_mapping_is_read() -> None:
    lines("sg.jsonl", SHAREGPT)
    entry = {"path": "sg.jsonl", "ds_type": "json", "type": "chat_template", "field_messages": "conversations"}
    run = axolotl(datasets=[entry | {"message_field_role": "from", "message_field_content": "value"}])
    assert (run.reasons, run.config.data.format) == ((), "axolotl")
    assert run.config.data.columns == {"messages": "conversations", "role": "from", "content": "value"}


@pytest.mark.parametrize(
    ("keys", "template"),
    [
        ({}, None),
        ({"chat_template": "llama3"}, "llama3"),
        ({"chat_template": "gemma", "datasets": {"chat_template": "qwen_25"}}, "qwen_25"),
        ({"chat_template": "tokenizer_default_fallback_chatml"}, "tokenizer_default_fallback_chatml"),
        ({"datasets": {"field_thinking": "thinking", "template_thinking_key": "thinking"}}, None),
        ({"datasets": {"drop_system_message": False, "field_tools": "tools", "input_format": None}}, None),
    ],
)
def test_axolotls_chat_templates_are_written_by_our_engines(keys: Any, template: str | None) -> None:
    entry = {"path": "m.jsonl", "ds_type": "json", "type": "chat_template", "roles": {"assistant": ["gpt"]}}
    run = axolotl(**keys | {"datasets": [entry | keys.get("datasets", {})]})
    assert (run.reasons, run.config.data.format, run.config.data.template) == ((), "axolotl", template)
    written = dialects.tree(dialects.TRAINERS["axolotl"], run.config.model_copy(update={"origin": None}), set())
    [entry] = cast(list[dict[str, Any]], written["datasets"])
    assert entry.get("chat_template") == template


AXOLOTLS_ROWS: list[dict[str, Any]] = [
    *(
        {"datasets": entry}
        for entry in (
            {"roles": {"assistant": ["model"]}},
            {"message_property_mappings": {"weight": "w"}},
            {"drop_system_message": True},
            {"field_thinking": "thinking"},
            {"field_tools": ["tools"]},
            {"roles_to_train": ["user"]},
            {"chat_template": "jinja", "chat_template_jinja": "t.jinja"},
            {"type": "completion"},
            {"type": "alpaca:other"},
            {"type": {"field_instruction": "q", "format": "{instruction}"}},
            {"shards": 10},
            {"data_files": ["m.jsonl", "n.jsonl"]},
        )
    ),
    {"eot_tokens": ["<|im_end|>"]},
    {"train_on_inputs": True},
    {"min_sample_len": 20},
    {"chat_template": "jamba"},
    {"default_system_message": "Be brief."},
    {"tokenizer_use_fast": False},
    {"tokenizer_legacy": True},
    {"tokenizer_type": "LlamaTokenizer"},
    {"tokenizer_config": "other"},
    {"tokenizer_use_mistral_common": True},
    {"dataset_exact_deduplication": True},
    {"test_datasets": [{"path": "sg.jsonl", "type": "chat_template", "field_messages": "turns"}], "val_set_size": None},
]


@pytest.mark.parametrize("keys", AXOLOTLS_ROWS, ids=str)
def test_rows_that_our_engines_would_read_otherwise_are_made_by_axolotl(keys: dict[str, Any]) -> None:
    entry = {"path": "m.jsonl", "ds_type": "json", "type": "chat_template"}
    file = keys | {"datasets": [entry | keys.get("datasets", {})]}
    assert axolotl(datasets=[entry]).config.data.format == "axolotl", "without the keys they are ours"
    run = axolotl(**file)
    data = run.config.data
    assert (run.reasons, data.path, data.format, data.tokenized_by) == ((), "m.jsonl", "tokens", "axolotl")
    assert {name: data.trainer_config[name] for name, value in file.items() if value is not None}.items() >= {
        name: value for name, value in file.items() if value is not None
    }.items()
    assert "data.python" in " ".join(run.notes) or shutil.which("axolotl")
    written = dialects.tree(dialects.TRAINERS["axolotl"], run.config.model_copy(update={"origin": None}), set())
    assert {name: written[name] for name in file if file[name] is not None} == {
        name: value for name, value in file.items() if value is not None
    }


def test_rows_of_several_data_sets_are_counted_where_they_are_files() -> None:
    lines("one.jsonl", [{"instruction": "a", "output": "b"}] * 30)
    lines("two.jsonl", [{"instruction": "a", "output": "b"}] * 10)
    both = [{"path": f"{name}.jsonl", "type": "alpaca"} for name in ("one", "two")]
    run = axolotl(datasets=both, val_set_size=0.1, num_epochs=2, micro_batch_size=4, gradient_accumulation_steps=1)
    assert (run.config.data.tokenized_by, run.config.training.horizon) == ("axolotl", 18)
    unknown = axolotl(datasets=[*both, {"path": "org/rows", "type": "alpaca"}])
    assert "the run's length in steps is not known" in " ".join(unknown.notes)


def test_axolotls_rows_have_one_length() -> None:
    run = axolotl(min_sample_len=20, sequence_len=256)
    longer = replace(run.config, {"data.max_length": 512})
    with pytest.raises(InputError, match=r"^data.max_length=512: Axolotl made the rows with another; "):
        dialects.tree(dialects.TRAINERS["axolotl"], longer.model_copy(update={"origin": None}), set())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.drop_long_rows": False}, r"^data.drop_long_rows=False: Axolotl made the rows otherwise"),
        ({"model.special_tokens": {"eos_token": "</s>"}}, r"^model.special_tokens: Axolotl made the rows with others"),
    ],
)
def test_rows_that_axolotl_made_are_exported_as_it_made_them(changes: dict[str, Any], said: str) -> None:
    config = replace(axolotl(min_sample_len=20).config, changes)
    with pytest.raises(InputError, match=said):
        dialects.tree(dialects.TRAINERS["axolotl"], config.model_copy(update={"origin": None}), set())


def test_what_changes_no_row_of_axolotls_needs_it_not() -> None:
    usual = {"tokenizer_type": "AutoTokenizer", "tokenizer_config": AXOLOTL["base_model"], "min_sample_len": 2}
    for keys in (usual, {"train_on_inputs": False, "tokenizer_use_fast": True, "chat_template_kwargs": {}}):
        assert axolotl(**keys).config.data.tokenized_by is None


def test_a_set_to_evaluate_on_is_the_folders_test_split() -> None:
    entry = {"type": "alpaca"}
    for path, split in (("rows", "test"), ("rows.jsonl", "train")):
        run = axolotl(datasets=[entry | {"path": "d.jsonl"}], test_datasets=[entry | {"path": path}], val_set_size=None)
        assert (run.config.data.eval_path, run.config.data.eval_split) == (path, split)


def test_a_data_set_of_axolotls_has_a_path() -> None:
    run = axolotl(datasets=[{"type": "alpaca"}, {"path": "b", "type": "alpaca"}])
    assert run.reasons[0].startswith("datasets={'type': 'alpaca'}: has no path")


# The data

CHATML = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def data(path: str, form: Any, **more: Any) -> DataConfig:
    return DataConfig(path=path, format=form, **{"eval_fraction": 0.2, **more})


def refused(config: DataConfig) -> str:
    with pytest.raises(InputError) as fault:
        load(config, tokenizer_with(CHATML))
    return str(fault.value)


def test_a_row_of_an_array_on_one_line_has_its_number() -> None:
    Path("rows.json").write_text(json.dumps([*ALPACA, {"instruction": "x", "input": "", "output": None}]))
    said = refused(data("rows.json", "alpaca", on_bad_row="refuse"))
    assert said == "rows.json: row 13: field 'output' is null"


def test_rows_without_an_answer_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    lines("rows.jsonl", [*({"text": f"Number {n}."} for n in range(12)), {"text": ""}])
    found = load(data("rows.jsonl", "text"), tokenizer_with())
    assert len(found.train) + len(found.evaluation) == 12
    assert "1 row(s) left out, which have nothing to learn: rows.jsonl:13: field 'text' is empty" in caplog.text
    lines("rows.jsonl", [*({"text": f"Number {n}."} for n in range(12)), *[{"text": ""}] * 6])
    said = refused(data("rows.jsonl", "text"))
    assert "more than 1 of " in said
    assert said.startswith("rows.jsonl:1")
    assert "\n" not in said


def test_an_empty_answer_is_told_by_the_files_own_column(caplog: pytest.LogCaptureFixture) -> None:
    dataset("demo", [*ALPACA, {"instruction": "x", "input": "", "output": ""}])
    assert count_rows(data("data", "llamafactory", name="demo")) == 12
    assert "data/demo.json: row 13: field 'output' is empty, so there is nothing to learn" in caplog.text


def test_an_optional_column_may_be_missing_in_some_rows() -> None:
    rows = [row | ({"system": "Be brief."} if number % 2 else {}) for number, row in enumerate(ALPACA)]
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    dataset("demo", rows, columns=columns)
    assert llamafactory().reasons == ()
    assert count_rows(data("data", "llamafactory", name="demo")) == 12
    dataset("demo", ALPACA, columns=columns)
    with pytest.raises(InputError, match=r"demo\.json: row 1: field 'system' is missing, in every row of demo$"):
        count_rows(data("data", "llamafactory", name="demo"))


def test_roles_that_no_tag_names_are_named() -> None:
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"}
    dataset("demo", SHAREGPT, formatting="sharegpt", columns={"messages": "conversations"}, tags=tags)
    with pytest.raises(InputError) as refusal:
        count_rows(data("data", "llamafactory", name="demo"))
    assert "its turns are by 'human', and the tags of demo name 'user', 'assistant'; correct the tags in " in str(
        refusal.value
    )


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_may_be_under_data(indent: int | None) -> None:
    Path("rows.json").write_text(json.dumps({"data": CHAT}, indent=indent))
    found = load(data("rows.json", "messages"), tokenizer_with(CHATML))
    assert len(found.train) + len(found.evaluation) == 12


def test_a_compressed_file_is_read() -> None:
    Path("rows.jsonl.gz").write_bytes(gzip.compress(Path("train.jsonl").read_bytes()))
    plain, packed = (load(data(name, "messages"), tokenizer_with(CHATML)) for name in ("train.jsonl", "rows.jsonl.gz"))
    assert plain.fingerprint == packed.fingerprint
    Path("split").mkdir()
    Path("split/train.jsonl.gz").write_bytes(Path("rows.jsonl.gz").read_bytes())
    assert load(data("split", "messages"), tokenizer_with(CHATML)).train == plain.train
    Path("rows.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert "a compressed Parquet file; decompress it" in refused(data("rows.parquet.gz", "messages"))
    Path("rows.jsonl.gz").write_bytes(b"not gzip")
    assert "is not a whole gzip file; compress it again" in refused(data("rows.jsonl.gz", "messages"))


def test_a_folder_of_save_to_disk_is_read() -> None:
    import datasets

    datasets.Dataset.from_list(CHAT).save_to_disk("saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(CHAT)}).save_to_disk("split")
    for name in ("saved", "split"):
        found = load(data(name, "messages"), tokenizer_with(CHATML))
        assert len(found.train) + len(found.evaluation) == 12


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "5"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "5."}]}
    form = parse(row, "messages", {}, has_template=True)
    assert isinstance(form, Chat)
    assert form.messages[0]["content"] == "Say 5"
    lines("rows.jsonl", [*CHAT, {"messages": [{"role": "user", "content": [{"type": "image"}]}, row["messages"][1]]}])
    assert refused(data("rows.jsonl", "messages")).endswith("is of type image; trials learn from text alone")


def test_null_content_beside_tool_calls_reaches_the_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    form = parse({"messages": turns}, "messages", {}, has_template=True)
    assert isinstance(form, Chat)
    assert form.messages[1]["tool_calls"] == [call]
    lines("rows.jsonl", [*CHAT, {"messages": turns}])
    found = load(data("rows.jsonl", "messages"), tokenizer_with(CHATML))
    assert len(found.train) + len(found.evaluation) == 13


def test_tools_reach_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "w", "description": "weather", "parameters": {}}}]
    lines("rows.jsonl", [row | {"tools": tools} for row in CHAT])
    lines("text.jsonl", [row | {"tools": json.dumps(tools)} for row in CHAT])
    without, given, as_text = (
        load(data(name, "messages"), tokenizer_with(CHATML)).fingerprint
        for name in ("train.jsonl", "rows.jsonl", "text.jsonl")
    )
    assert given == as_text != without


def test_axolotls_alpaca_prompt_and_answer_are_tokenised_one_by_one() -> None:
    entry = {"path": "data/demo.json", "ds_type": "json", "type": "alpaca"}
    run = axolotl(datasets=[entry])
    assert (run.reasons, run.config.data.format, run.config.data.template) == ((), "alpaca", "alpaca")
    tokenizer = tokenizer_with(CHATML)
    dataset("demo", [{"instruction": "Add", "input": given, "output": " 3"} for given in ("1 2", "", "4")])
    found = load(data("data/demo.json", "alpaca", template="alpaca", max_length=999), tokenizer)
    for example in (*found.train, *found.evaluation):
        text = tokenizer.decode(example.input_ids)
        at = text.index("### Response:\n") + len("### Response:\n")
        assert text.startswith("<s>Below is an instruction that describes a task")
        assert ("### Input:" in text) == (", paired with an input that provides further context." in text)
        prompt = tokenizer(text[3:at], add_special_tokens=False)["input_ids"]
        answer = tokenizer(" 3", add_special_tokens=False)["input_ids"]
        assert list(example.input_ids) == [tokenizer.bos_token_id, *prompt, *answer, tokenizer.eos_token_id]
        assert [label for label in example.labels if label >= 0] == [*answer, tokenizer.eos_token_id]


def test_other_special_tokens_of_the_vocabulary_are_taken() -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    run = axolotl(special_tokens=tokens)
    assert (run.reasons, dict(run.config.model.special_tokens)) == ((), {k: tokens[k] for k in list(tokens)[:3]})
    embedded = load_tokenizer(ModelConfig(path="embedded"))
    other = next(token for token, number in sorted(embedded.get_vocab().items()) if number == 9)
    changed = load_tokenizer(ModelConfig(path="embedded", special_tokens={"eos_token": other}))
    assert (changed.eos_token, len(changed)) == (other, len(embedded))
    with pytest.raises(InputError, match=r"^model\.special_tokens\.eos_token=<none>: takes a bos"):
        load_tokenizer(ModelConfig(path="embedded", special_tokens={"eos_token": "<none>"}))


@pytest.mark.parametrize(
    ("kind", "begins", "with_input", "without"),
    [
        ("alpaca:chat", "SYSTEM: Below", "USER: Add\n1 2\nASSISTANT:| 3", "USER: Add\nASSISTANT:| 3"),
        (
            "alpaca:chatml",
            "<|im_start|>system\nBelow",
            "user\nAdd\n1 2<|im_end|>\n<|im_start|>assistant\n| 3",
            "user\nAdd<|im_end|>\n<|im_start|>assistant\n| 3",
        ),
        (
            "alpaca:phi",
            "<|system|>\nBelow",
            "completes the request.<|end|>\n<|user|>\nAdd<|end|>1 2<|assistant|>| 3",
            "completes the request.<|end|>\n<|user|>\nAdd<|end|>\n<|assistant|>\n| 3",
        ),
    ],
)
def test_axolotls_styles_of_the_alpaca_prompt(kind: str, begins: str, with_input: str, without: str) -> None:
    run = axolotl(datasets=[{"path": "data/demo.json", "ds_type": "json", "type": kind}])
    assert (run.reasons, run.config.data.template) == ((), kind)
    exported: dict[str, Any] = dict(dialects.tree(dialects.TRAINERS["axolotl"], run.config, set()))
    assert exported["datasets"][0]["type"] == kind
    for given, ends in (("1 2", with_input), ("", without)):
        form = parse({"instruction": "Add", "input": given, "output": " 3"}, "alpaca", {}, True, kind)
        assert isinstance(form, Plain)
        assert form.apart
        assert f"{form.prompt}|{form.completion}".startswith(begins)
        assert f"{form.prompt}|{form.completion}".endswith(ends)


def test_a_style_that_is_not_axolotls_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data.template=alpaca:other: for format alpaca it is one of alpaca, "):
        load(data("data/demo.json", "alpaca", template="alpaca:other"), tokenizer_with(CHATML))


def test_the_files_that_an_entry_names_move_with_data_dir() -> None:
    entry = {"path": "json", "data_files": ["train.jsonl"], "type": "chat_template"}
    run = imported("axolotl", AXOLOTL | {"datasets": [entry]}, "f.yml", Request(data_dir="elsewhere"))
    assert (run.reasons, run.config.data.path) == ((), "elsewhere/train.jsonl")


def test_some_files_of_a_data_set_are_read_by_axolotl() -> None:
    entry = {"path": "org/rows", "data_files": ["a.jsonl"], "type": "chat_template"}
    assert axolotl(datasets=[entry]).config.data.tokenized_by == "axolotl"
    assert axolotl(datasets=[entry | {"path": "json", "data_files": ["train.jsonl"]}]).config.data.tokenized_by is None
