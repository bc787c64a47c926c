"""The real `axolotl train` and `axolotl preprocess` beside our engines: the same file, the same rows and losses."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import datasets
import platformdirs
import pytest

from lrsweep.config.schema import replace
from lrsweep.dialects.imported_run import Request
from lrsweep.dialects.importer import imported
from lrsweep.embedded import BASE, corpus
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.inputs import forget_inputs, inputs
from tests.mixtures import write_mixture
from tests.recorder import train

ENVIRONMENT = Path(__file__).parents[2] / ".tmp" / "interop" / "axolotl"
PYTHON = ENVIRONMENT / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".installed").exists(), reason="axolotl is not installed here: make interop"
)
# Every step sees all rows, so that the order in which a trainer draws them makes no difference.
ROWS = 8
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "peft_init_lora_weights": "olora",  # a start that is not drawn at random: two programs draw otherwise
    # Its own kernels need a GPU.
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}
RUN: dict[str, Any] = {
    "base_model": "model",
    "datasets": [{"path": "one.jsonl", "type": "alpaca"}, {"path": "two.jsonl", "type": "alpaca:chat"}],
    "test_datasets": [{"path": "held_out.jsonl", "type": "alpaca", "split": "train"}],
    "sequence_len": 256,
    "max_steps": 12,
    "num_epochs": 12,
    "micro_batch_size": ROWS,
    "eval_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "cosine",
    "warmup_steps": 3,
    "bf16": False,
    "eval_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "attn_implementation": "sdpa",
    "output_dir": "out",
    "dataset_prepared_path": "prepared",
}
CHAT = {"path": "chat.jsonl", "type": "chat_template", "chat_template": "chatml"}


OURS: dict[str, Any] = {"datasets": [{"path": "one.jsonl", "type": "alpaca"}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the embedded model and rows of Axolotl's, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("AXOLOTL_DATASET_NUM_PROC", "1")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    forget_inputs()
    shutil.copytree(BASE, tmp_path / "model")
    write_mixture("mixtral", tmp_path / "mixtral")
    pairs = corpus.rows()[0]
    for name, part in (("one", pairs[:4]), ("two", pairs[4:ROWS]), ("held_out", pairs[100 : 100 + ROWS])):
        lines(
            f"{name}.jsonl", [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in part]
        )
    Path("both").mkdir()
    for name, source in (("train", "one"), ("test", "held_out")):
        shutil.copy(f"{source}.jsonl", f"both/{name}.jsonl")
    for name, part in (("chat", pairs[:ROWS]), ("held_out_chat", pairs[100 : 100 + ROWS])):
        turns = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            for row in part
        ]
        lines(f"{name}.jsonl", [{"messages": turn * (1 + at % 2)} for at, turn in enumerate(turns)])
    return tmp_path


def lines(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows to a file in the working folder."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def axolotl(command: str, run: dict[str, Any]) -> str:
    """What `axolotl COMMAND` prints for a file of these keys."""
    Path("run.yml").write_text(to_yaml(run))
    done = subprocess.run(
        [str(PYTHON), "-m", f"axolotl.cli.{command}", "run.yml"],
        env={**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        LORA,
        LORA | {"train_on_inputs": True, "weight_decay": 0.1, "adam_beta2": 0.95, "max_grad_norm": 0.2},
        LORA | {"datasets": [CHAT | {"roles_to_train": ["user", "assistant"], "train_on_eos": "last"}]},
        # Each batch of a step has its own mean.
        LORA | {"micro_batch_size": 1, "gradient_accumulation_steps": ROWS},
        # It loads whole weights in bf16 only if it may compute in it, which takes a GPU.
        {},
        {"lr_scheduler": "linear", "cosine_min_lr_ratio": 0.5, "warmup_steps": 1},
        # Rows that are read here.
        OURS | LORA | {"test_datasets": [{"path": "both", "type": "alpaca"}], "weight_decay": 0.1},
        OURS | LORA | {"peft_use_rslora": True, "cosine_min_lr_ratio": 0.5, "adam_epsilon": 1e-4},
        {
            "datasets": [CHAT],
            "test_datasets": [CHAT | {"path": "held_out_chat.jsonl", "split": "train"}],
            "warmup_ratio": 0.25,
            "warmup_steps": None,
        },
        OURS
        | LORA
        | {"resize_token_embeddings_to_32x": True, "lr_scheduler": "constant_with_warmup", "loraplus_lr_ratio": 8},
        {
            "unfrozen_parameters": ["^model.embed_tokens.weight$[:300]", "model.layers.[1-9].mlp.", "lm_head"],
            "weight_decay": 0.5,
        },
        {
            "base_model": "mixtral",
            "model_config": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
            "micro_batch_size": 1,
            "gradient_accumulation_steps": ROWS,
        },
    ],
    ids=[
        *(
            "lora",
            "prompts",
            "turns",
            "accumulated",
            "whole",
            "linear",
            "split",
            "alpaca",
            "chat",
            "loraplus",
            "unfrozen",
        ),
        "mixture",
    ],
)
def test_the_same_file_has_the_same_losses(folder: Path, changes: dict[str, Any]) -> None:
    run = RUN | changes
    logged: dict[str, list[float]] = {"loss": [], "eval_loss": [], "grad_norm": []}
    for line in re.findall(r"\{'(?:eval_)?loss': [^}]*\}", axolotl("train", run)):
        row = ast.literal_eval(line)
        for name in logged.keys() & row.keys():
            logged[name].append(float(row[name]))
    read = imported("axolotl", run, "run.yml", Request(python=str(PYTHON)))
    assert not read.reasons
    assert (read.config.data.tokenized_by is None) is (run["datasets"] in (OURS["datasets"], [CHAT]))
    host = train(TrainerEngine(), folder, replace(read.config, {"training.save_adapter": False}))
    for name, values in logged.items():
        ours = [value for step, value in sorted(host.curve(name).items()) if step or name == "eval_loss"]
        assert len(values) == (5 if name == "eval_loss" else 12), name
        assert ours == pytest.approx(values, rel=1e-3), name


ENDED = {**CHAT, "chat_template": None, "chat_template_jinja": "{% for m in messages %}[{{ m.content }}]!{% endfor %}"}
ENTRIES: list[dict[str, Any]] = [
    {"eot_tokens": ["!"], "datasets": [ENDED]},
    {
        "datasets": [
            CHAT
            | {"chat_template": None, "chat_template_jinja": "{% for m in messages %}[{{ m.content }}]</s>{% endfor %}"}
        ]
    },
    {"datasets": [CHAT | {"drop_system_message": True, "roles_to_train": ["user"]}], "chat_template": "llama3"},
    {"datasets": [{"path": "one.jsonl", "type": {"field_instruction": "output", "field_output": "instruction"}}]},
    {
        "datasets": [{"path": "one.jsonl", "type": "completion", "field": "output"}],
        "sequence_len": 24,
        "min_sample_len": 9,
    },
    {"datasets": [{"path": "one.jsonl", "type": "alpaca"}] * 2, "dataset_exact_deduplication": True},
    {"excess_length_strategy": "truncate", "sequence_len": 90},
]


@pytest.mark.parametrize("changes", ENTRIES, ids=str)
def test_rows_are_those_that_axolotl_prepares(folder: Path, changes: dict[str, Any]) -> None:
    run = {name: value for name, value in (RUN | LORA | changes).items() if name != "test_datasets"}
    axolotl("preprocess", run)
    [prepared] = Path("prepared").glob("*/dataset_info.json")
    expected = sorted((row["input_ids"], row["labels"]) for row in datasets.load_from_disk(prepared.parent).to_list())
    read = imported("axolotl", run | {"val_set_size": 1}, "run.yml", Request(python=str(PYTHON)))
    assert (read.reasons, read.config.data.tokenized_by) == ((), "axolotl")
    _, data = inputs(read.config.model, read.config.data)
    found = [(list(row.input_ids), list(row.labels)) for row in (*data.train, *data.evaluation)]
    # The first token is never predicted, so that its label makes no difference.
    assert sorted((ids, labels[1:]) for ids, labels in found) == [(ids, labels[1:]) for ids, labels in expected]


def test_what_axolotl_says_against_a_file_is_the_last_line(folder: Path) -> None:
    run = RUN | {"datasets": [{"path": "one.jsonl", "type": "alpacca"}]}
    read = imported("axolotl", run, "run.yml", Request(python=str(PYTHON)))
    with pytest.raises(InputError, match=r"^data.tokenized_by=axolotl: it cannot make the rows: .*alpacca"):
        inputs(read.config.model, read.config.data)
