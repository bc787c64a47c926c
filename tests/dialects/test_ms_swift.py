"""The real `swift sft` beside our engines: the same file, the same losses."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from lrsweep.config.schema import replace
from lrsweep.dialects.imported_run import Request
from lrsweep.dialects.importer import imported
from lrsweep.embedded import BASE, corpus
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.inputs import forget_inputs, inputs
from tests.mixtures import write_mixture
from tests.recorder import train

ENVIRONMENT = Path(__file__).parents[2] / ".tmp" / "interop" / "ms-swift"
PYTHON = ENVIRONMENT / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".installed").exists(), reason="ms-swift is not installed here: make interop"
)
# Every step sees all rows, so that the order in which a trainer draws them makes no difference.
ROWS = 8
RUN: dict[str, Any] = {
    "model": "model",
    "model_type": "llama",
    "template": "qwen2_5",
    "tuner_type": "full",
    "torch_dtype": "float32",
    "dataset": ["rows.jsonl"],
    "val_dataset": ["held_out.jsonl"],
    "max_length": 256,
    "max_steps": 12,
    "per_device_train_batch_size": ROWS,
    "per_device_eval_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "output_dir": "out",
    "use_cpu": True,
    "report_to": "none",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the embedded model and rows of ms-swift's, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    forget_inputs()
    shutil.copytree(BASE, tmp_path / "model")
    write_mixture("mixtral", tmp_path / "mixtral")
    rows = [{"query": row["prompt"], "response": row["completion"]} for row in corpus.rows()[0]]
    for name, part in (("rows", rows[:ROWS]), ("held_out", rows[100 : 100 + ROWS])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def theirs(folder: Path, run: dict[str, Any]) -> dict[str, dict[int, float]]:
    """The losses and gradient norms that `swift sft` logs, to four digits, by step."""
    (folder / "run.yaml").write_text(to_yaml(run))
    done = subprocess.run(
        [str(PYTHON.with_name("swift")), "sft", "run.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[int, float]] = {"loss": {}, "eval_loss": {}, "grad_norm": {}}
    for line in re.findall(r"\{'(?:eval_)?loss': [^}]*\}", done.stdout + done.stderr):
        row = ast.literal_eval(line)
        for name in found.keys() & row.keys():
            found[name][int(row["global_step/max_steps"].partition("/")[0])] = float(row[name])
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"torch_dtype": "bfloat16"},
        {"template": "chatml", "system": "Write the first line of its documentation."},
        {"loss_scale": "all", "weight_decay": 0.0, "adam_beta2": 0.999, "lr_scheduler_type": "linear"},
        {"enable_dft_loss": True},
        # Each batch of a step has one row, of its own length.
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS},
        {"model": "mixtral", "model_type": "mixtral", "router_aux_loss_coef": 0.5},
        {"template": "qwen3", "loss_scale": "ignore_empty_think"},
        # A start that is not drawn at random: two programs draw otherwise.
        {"tuner_type": "lora", "init_weights": "olora", "lora_dropout": 0.0, "lora_rank": 4},
    ],
    ids=lambda changes: ",".join(map(str, changes)) or "plain",
)
def test_the_same_file_has_the_same_losses(folder: Path, changes: dict[str, Any]) -> None:
    run = RUN | changes
    logged = theirs(folder, run)
    if run.get("enable_dft_loss"):
        # It logs the weighted losses, and trials log what the model would have without the weights.
        logged = {"grad_norm": logged["grad_norm"]}
    read = imported("ms-swift", run, "run.yaml", Request(python=str(PYTHON)))
    assert not read.reasons
    host = train(TrainerEngine(), folder, replace(read.config, {"training.save_adapter": False}))
    for name, values in logged.items():
        assert len(values) == (4 if name == "eval_loss" else 12)
        ours = {step: value for step, value in host.curve(name).items() if step}
        assert ours == pytest.approx(values, rel=1e-2 if run["torch_dtype"] == "bfloat16" else 1e-3), name


def test_data_sets_are_sampled_and_joined_as_there(folder: Path) -> None:
    """Its `FILE#5` draws five rows, and a run may have several."""
    many = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(40)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    run = RUN | {"dataset": ["many.jsonl#5", "rows.jsonl"]}
    read = imported("ms-swift", run, "run.yaml", Request(python=str(PYTHON)))
    tokenizer, data = inputs(read.config.model, read.config.data)
    texts = [tokenizer.decode(example.input_ids) for example in data.train]
    assert (sum("It is" in text for text in texts), len(texts)) == (5, 13)
    assert all("You are Qwen, created by Alibaba Cloud." in text for text in texts)
    assert len(data.evaluation) == ROWS
