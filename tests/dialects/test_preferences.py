"""What only their trainer trains, swept by the user's own command: DPO by LLaMA-Factory and TRL, and Muon."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lrsweep.embedded import BASE, corpus
from tests.dialects.examples import put
from tests.dialects.test_llamafactory import ON_THE_CPU, started_with

ENVIRONMENTS = Path(__file__).parents[2] / ".tmp" / "interop"
RATES = [1e-4, 1e-3, 1e-2]
LLAMAFACTORY = """\
# Preferences.
model_name_or_path: model
stage: dpo
do_train: true
finetuning_type: lora
lora_target: all # every layer
dataset: pairs
cutoff_len: 128
val_size: 0.2
output_dir: saves/run
per_device_train_batch_size: 8
learning_rate: 1e-3
max_steps: 16
eval_steps: 8
report_to: none
"""
TRL = """\
# Preferences.
model_name_or_path: model
datasets:
  - path: json
    data_files: pairs.jsonl
test_split_size: 0.2
learning_rate: 1e-3
max_steps: 16
eval_steps: 8
beta: 0.1
use_peft: true
lora_target_modules: all-linear
per_device_train_batch_size: 8
bf16: false
use_cpu: true
output_dir: out
report_to: none
"""
MUON = LLAMAFACTORY.replace("stage: dpo", "stage: sft").replace("dataset: pairs", "dataset: train") + "use_muon: true\n"


def python_of(tool: str) -> Path:
    if not (ENVIRONMENTS / tool / ".installed").exists():
        pytest.skip(f"{tool} is not installed here: make interop")
    return ENVIRONMENTS / tool / "bin" / "python"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(BASE, tmp_path / "model")
    rows = [(row["prompt"].strip(), row["completion"].strip()) for row in corpus.rows()[0][:161]]
    pairs = [
        {"instruction": prompt, "input": "", "chosen": answer, "rejected": other}
        for (prompt, answer), (_, other) in itertools.pairwise(rows)
    ]
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    put(tmp_path / "data", "pairs", pairs, ranking=True, columns=columns)
    put(tmp_path / "data", "train", [{"instruction": p, "input": "", "output": a} for p, a in rows])
    lines = [json.dumps({"prompt": row["instruction"], **{k: row[k] for k in ("chosen", "rejected")}}) for row in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def lrsweep(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lrsweep", *arguments],
        cwd=cwd,
        env={**os.environ, **ON_THE_CPU, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("dialect", "text"), [("llamafactory", LLAMAFACTORY), ("trl", TRL)], ids=["llamafactory", "trl"]
)
def test_preferences_are_swept_by_the_users_command(folder: Path, dialect: str, text: str) -> None:
    (folder / "dpo.yaml").write_text(text)
    lrsweep("import", dialect, "dpo.yaml", "--python", str(python_of(dialect)), cwd=folder)
    axis = f"space.optimizer.lr={RATES}".replace(" ", "")
    lrsweep("+sweep=dpo", axis, "search.replicates=1", "tracking=none", cwd=folder)
    found: dict[str, Any] = json.loads((folder / "outputs/dpo/summary.json").read_text())
    assert [trial["status"] for trial in found["trials"]] == ["complete"] * 3
    assert found["best"]["metric"] == "eval_rewards/accuracies"
    assert 0 <= found["best"]["value"] <= 1
    exported = lrsweep("export", "dpo", "--to", dialect, "--base", "dpo.yaml", cwd=folder)
    assert f"# Metric eval_rewards/accuracies: {found['best']['value']:.4f} after 16 steps" in exported
    same = [line for line in text.splitlines() if line in exported.splitlines()]
    assert [line for line in text.splitlines()[1:] if line not in same] in ([], ["learning_rate: 1e-3"])


def test_an_optimizer_of_llamafactorys_own_is_swept_and_a_pruned_trial_leaves_no_process(folder: Path) -> None:
    (folder / "muon.yaml").write_text(MUON)
    told = lrsweep("import", "llamafactory", "muon.yaml", "--python", str(python_of("llamafactory")), cwd=folder)
    assert "because of use_muon=True: it is another optimizer" in told
    mark = {"PREFERENCES": str(folder)}
    pruner = ["pruner=median", "pruner.kwargs={n_startup_trials: 1, n_warmup_steps: 0}"]
    axis = "space.optimizer.lr=[1e-3,1e-6]"
    lrsweep("+sweep=muon", axis, *pruner, "search.replicates=1", "tracking=none", cwd=folder, **mark)
    trials = json.loads((folder / "outputs/muon/summary.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["complete", "pruned"]
    assert started_with(mark) == []
