"""The whole way round with the real LLaMA-Factory: its config in, a sweep, its config out, trained by its own command.

Then that command is the engine: the same trials, each a process of its own.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from lrsweep.dialects.importer import imported
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.embedded import BASE, corpus
from lrsweep.training.engines.trainer import TrainerEngine
from tests.dialects.examples import put
from tests.recorder import train

ENVIRONMENT = Path(__file__).parents[2] / ".tmp" / "interop" / "llamafactory"
CLI = ENVIRONMENT / "bin" / "llamafactory-cli"
pytestmark = [
    pytest.mark.skipif(
        not (ENVIRONMENT / ".installed").exists(), reason="llamafactory is not installed here: make interop"
    ),
    pytest.mark.xdist_group("llamafactory"),
]
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
# How much the same run's losses differ between two trainers, which round differently; the trials differ far more.
NOISE = 0.001
STEPS = 24
RUN = f"""\
# LoRA of a little model.
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: lora
lora_target: all # every linear layer
dataset: train
eval_dataset: held_out
cutoff_len: 128
do_eval: true
output_dir: saves/run
report_to: none
save_strategy: 'no'
per_device_train_batch_size: 8
per_device_eval_batch_size: 48
learning_rate: 1e-3
max_steps: {STEPS}
lr_scheduler_type: cosine
warmup_ratio: 0.1
disable_gradient_checkpointing: true
"""


def summary(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outputs" / name / "summary.json").read_text())
    return found


def run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    """`python -m lrsweep`; without a time limit, as each trial of a trainer is a start of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "lrsweep", *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run's config, its model and data, and the sweep of eight trials that it became."""
    folder = tmp_path_factory.mktemp("llamafactory")
    shutil.copytree(BASE, folder / "model")
    train, held_out = corpus.rows()
    for name, rows in (("train", train[:240]), ("held_out", held_out[:48])):
        answers = [{"instruction": r["prompt"].strip(), "input": "", "output": r["completion"].strip()} for r in rows]
        put(folder / "data", name, answers)
    (folder / "run.yaml").write_text(RUN)
    run("import", "llamafactory", "run.yaml", cwd=folder)
    axes = ["space.optimizer.lr=[1e-4,1e-3,3e-3,1e-2]", "space.optimizer.weight_decay=[0.0,0.1]"]
    run("+sweep=run", *axes, "search.replicates=1", "tracking=none", cwd=folder)
    return folder


def test_the_exported_file_trains_to_the_best_trials_loss(swept: Path) -> None:
    found = summary(swept, "run")
    losses = sorted(trial["eval_loss"] for trial in found["trials"])
    assert len(losses) == 8
    assert losses[-1] - losses[0] > 50 * NOISE

    run("export", "run", "--to", "llamafactory", "--base", "run.yaml", "--out", "best.yaml", cwd=swept)
    before, after = RUN.splitlines(), (swept / "best.yaml").read_text().splitlines()
    assert [line for line in before if line not in after] == ["learning_rate: 1e-3"]
    environment = {**os.environ, **ON_THE_CPU, "PYTHONPATH": ""}
    trained = subprocess.run([CLI, "train", "best.yaml"], cwd=swept, env=environment, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr[-3000:]
    loss = json.loads((swept / "saves" / "run" / "eval_results.json").read_text())["eval_loss"]
    print(f"best trial {found['best']['eval_loss']:.4f}, trained by llamafactory-cli {loss:.4f}")
    assert loss == pytest.approx(found["best"]["eval_loss"], abs=NOISE)


def test_as_the_engine_it_trains_the_same_trials_and_leaves_no_process(swept: Path) -> None:
    """Three trials only, as each starts a process anew; the last one is pruned."""
    external = [
        "engine=external",
        f"engine.command='{CLI} train {{config}}'",
        "engine.dialect=llamafactory",
        "pruner=median",
        "pruner.kwargs={n_startup_trials: 2, n_warmup_steps: 0}",
    ]
    mark = {"ROUND_TRIP": str(swept)}
    axis = "space.optimizer.lr=[3e-3,1e-3,1e-5]"
    run(
        "+sweep=run",
        "name=theirs",
        axis,
        *external,
        "search.replicates=1",
        "tracking=none",
        cwd=swept,
        env={**ON_THE_CPU, **mark},
    )
    assert started_with(mark) == []
    theirs = {trial["values"]["optimizer.lr"]: trial for trial in summary(swept, "theirs")["trials"]}
    ends = {rate: trial["status"] for rate, trial in theirs.items()}
    assert ends == {3e-3: "complete", 1e-3: "complete", 1e-5: "pruned"}
    assert theirs[1e-5]["step"] < STEPS
    ours = {
        trial["values"]["optimizer.lr"]: trial
        for trial in summary(swept, "run")["trials"]
        if trial["values"]["optimizer.weight_decay"] == 0
    }
    for rate in (1e-3, 3e-3):
        mine, its = (dict(map(tuple, trial["evals"])) for trial in (ours[rate], theirs[rate]))
        print(f"lr {rate:g}: packed {mine[STEPS]:.4f}, llamafactory-cli {its[STEPS]:.4f}")
        assert its == pytest.approx({step: loss for step, loss in mine.items() if step > 0}, abs=NOISE)


def started_with(mark: dict[str, str]) -> list[list[str]]:
    """The command lines of what runs with that in its environment, as all that a process starts inherits it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark.items() <= process.environ().items():
                found.append(process.cmdline())
    return found


@pytest.mark.parametrize("rows_of_a_batch", [8, 1])
def test_whole_weights_are_trained_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of_a_batch: int
) -> None:
    """Every step sees all rows, so that their order makes no difference; losses to the four digits that it logs.

    Its `pure_bf16` needs a GPU.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, tmp_path / "model")
    for name, rows in zip(("train", "held_out"), corpus.rows(), strict=True):
        answers = [{"instruction": r["prompt"].strip(), "input": "", "output": r["completion"].strip()} for r in rows]
        put(tmp_path / "data", name, answers[:8])
    text = RUN.replace("finetuning_type: lora", "finetuning_type: full").replace("lora_target", "# lora_target")
    text = text.replace(f"max_steps: {STEPS}", "max_steps: 9")
    text = text.replace("per_device_eval_batch_size: 48", "logging_steps: 1")
    text = text.replace("train_batch_size: 8", f"train_batch_size: {rows_of_a_batch}")
    text += f"eval_strategy: steps\neval_steps: 3\ngradient_accumulation_steps: {8 // rows_of_a_batch}\n"
    Path("run.yaml").write_text(text)
    done = subprocess.run(
        [CLI, "train", "run.yaml"], env={**os.environ, **ON_THE_CPU, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads(Path("saves/run/trainer_state.json").read_text())["log_history"]
    read = imported("llamafactory", load_yaml(text, "run.yaml"), "run.yaml")
    assert not read.reasons
    host = train(TrainerEngine(), tmp_path, read.config)
    for name, count in (("loss", 9), ("eval_loss", 3)):
        theirs = [row[name] for row in history if name in row][:count]
        assert len(theirs) == count
        found = [value for step, value in host.curve(name).items() if step]
        assert found == pytest.approx(theirs, rel=2e-3), name
