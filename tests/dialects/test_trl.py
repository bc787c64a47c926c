"""The real `trl sft` as the engine."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lrsweep import dialects
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.trial_file import of_trial
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.embedded import BASE, corpus
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.training.engines import Trial
from lrsweep.training.engines.external import ExternalEngine
from lrsweep.training.engines.trainer import TrainerEngine
from tests.mixtures import write_mixture
from tests.recorder import train
from tests.training.engines.test_external import running

ENVIRONMENT = Path(__file__).parents[2] / ".tmp" / "interop" / "trl"
CLI = ENVIRONMENT / "bin" / "trl"
pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".installed").exists(), reason="trl is not installed here: make interop"
)
RUN = """\
model_name_or_path: {model}
datasets: [{{path: json, data_files: {rows}}}]
test_split_size: 0.2
completion_only_loss: true
use_peft: true
lora_target_modules: all-linear
learning_rate: 1e-3
max_steps: 100
per_device_train_batch_size: 4
push_to_hub: true
gradient_checkpointing: false
bf16: false
use_cpu: true
report_to: none
"""


def test_its_curve_is_read_as_it_goes_and_it_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in corpus.rows()[0][:60]))
    dialect = dialects.TRAINERS["trl"]
    file = load_yaml(RUN.format(model=BASE, rows=rows), "run.yaml")
    config = replace(from_tree(dialect, file, "run.yaml").config, {"training.eval_every": 3})

    def text(trial: Trial, output: Path) -> str:
        return to_yaml(of_trial(dialect, dialects.tree(dialect, trial.config, set()), trial.config, output))

    host = train(ExternalEngine(f"{CLI} sft --config {{config}}", text, 1, []), tmp_path, config, stop_at=6)
    (outcome,) = host.outcomes
    assert (outcome.status, outcome.reason) == ("stopped", ""), (tmp_path / "0" / "output.log").read_text()[-3000:]
    assert 6 <= outcome.step < 100
    curve = host.curve("eval_loss")
    assert sorted(curve)[:2] == [3, 6]
    assert max(curve.values()) < 7
    assert sorted(host.curve("loss"))[:6] == [1, 2, 3, 4, 5, 6]
    assert running(tmp_path) == []


def test_an_export_of_a_sweep_on_a_file_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of ours, not an import: the file names rows only, and `trl sft` evaluates on a split."""
    monkeypatch.setenv("PYTHONPATH", "")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in corpus.rows()[0][:60]))
    config = sweep_config(
        [
            "+sweep=lora_lr",
            "model=local",
            f"model.path={BASE}",
            "data=local",
            f"data.path={rows}",
            "data.eval_fraction=0.2",
            "data.format=prompt_completion",
            "training.max_steps=2",
            "training.eval_every=1",
            "training.batch_size=2",
        ]
    )
    tree = dialects.tree(dialects.TRAINERS["trl"], config, set())
    (tmp_path / "run.yaml").write_text(to_yaml({**tree, "output_dir": str(tmp_path / "run"), "use_cpu": True}))
    done = subprocess.run([CLI, "sft", "--config", tmp_path / "run.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("eval_loss") == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        # It adds the router's loss by itself, with the model's own weight.
        {"model_name_or_path": "mixtral"},
        {"model_name_or_path": "mixtral", "router_aux_loss_coef": 0.5},
    ],
    ids=lambda changes: ",".join(map(str, changes)) or "plain",
)
def test_whole_weights_are_trained_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Every step sees all rows, so that their order makes no difference; losses to the four digits that it prints."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    write_mixture("mixtral", tmp_path / "mixtral")
    train_rows, held_out = corpus.rows()
    for name, part in (("train", train_rows[:8]), ("test", held_out[:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    run = {
        "model_name_or_path": str(BASE),
        "dataset_name": str(tmp_path),
        "completion_only_loss": True,
        "dtype": "float32",
        "bf16": True,
        "use_cpu": True,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "max_steps": 9,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_checkpointing": False,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(tmp_path / "out"),
        **changes,
    }
    in_bf16 = run["dtype"] == "bfloat16"
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    done = subprocess.run([CLI, "sft", "--config", tmp_path / "run.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [ast.literal_eval(line) for line in re.findall(r"\{'(?:eval_)?loss': [^}]*\}", done.stdout)]
    read = from_tree(dialects.TRAINERS["trl"], run, "run.yaml").config
    assert (read.finetune.pure_bf16, read.model.output_router_logits) == (in_bf16, "model_name_or_path" in changes)
    ours = replace(
        read,
        {
            "data.path": str(tmp_path / "train.jsonl"),
            "data.eval_path": str(tmp_path / "test.jsonl"),
            "data.eval_split": None,
            "data.format": "prompt_completion",
        },
    )
    host = train(TrainerEngine(), tmp_path, ours)
    for name, count in (("loss", 9), ("eval_loss", 3)):
        theirs = [float(row[name]) for row in rows if name in row]
        assert len(theirs) == count
        found = [value for step, value in host.curve(name).items() if step]
        assert found == pytest.approx(theirs, rel=1e-2 if in_bf16 else 2e-3), name
