"""Logs in every format that people have. Those in tests/fixtures/logs are by the tools: its make_logs.py wrote them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrsweep.analysis import log_readers
from lrsweep.analysis.diagnosis import Curve, diagnose
from lrsweep.analysis.log_readers.sources import logs_in
from lrsweep.errors import InputError
from tests.conftest import lrsweep_here
from tests.fixtures.logs.make_logs import rows, tensorboard

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
LOSSES = [row["loss"] for row in rows() if "loss" in row]
EVALS = [row["eval_loss"] for row in rows() if "eval_loss" in row]


def nowhere(run_id: str) -> list[Any]:
    raise AssertionError(run_id)


def read(path: Path) -> Curve:
    return log_readers.read(str(path), nowhere)


@pytest.mark.parametrize(
    ("name", "has_steps"),
    [
        ("console.txt", False),
        ("running_log.txt", False),
        ("trainer_log.jsonl", True),
        ("trainer_state.json", True),
        ("wandb_history.csv", True),
        ("wandb_history.jsonl", True),
    ],
)
def test_what_the_tools_write_is_read(name: str, has_steps: bool) -> None:
    found = read(LOGS / name)
    assert found.loss.values == pytest.approx(LOSSES, abs=1e-3)
    assert list(found.loss.steps) == [10 * i if has_steps else i for i in range(1, 31)]
    assert found.counted != has_steps
    # The web UI's log of LLaMA-Factory has no evaluations.
    assert found.eval_loss.values == pytest.approx([] if name == "running_log.txt" else EVALS, abs=1e-3)
    assert found.peak_lr == pytest.approx(9.677e-5, rel=1e-3)
    assert diagnose(found).label == "healthy"


def test_an_event_file_of_tensorboard_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    monkeypatch.setattr("tests.fixtures.logs.make_logs.HERE", tmp_path)
    tensorboard()
    (path,) = tmp_path.iterdir()
    # People rename these files.
    for found in (read(path), read(path.rename(tmp_path / "run.tfevents"))):
        assert found.loss.values == pytest.approx(LOSSES)
        assert found.eval_loss.values == pytest.approx(EVALS)
        assert list(found.loss.steps) == [10 * i for i in range(1, 31)]


def test_a_damaged_event_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"\x18" + b"\0" * 11 + b"\x1a\x0dbrain.Event:2" + b"rubbish" * 9)
    with pytest.raises(InputError, match=r"lrsweep\[tensorboard\]|damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


STEPS = range(10, 130, 10)


def falling(step: int) -> float:
    return round(2 / (1 + step / 100), 4)


TEXTS = {
    "numbers as text": "\n".join(f'{{"step": {s}, "loss": "{falling(s)}"}}' for s in STEPS),
    "a byte order mark": "\ufeff" + json.dumps({"log_history": [{"step": s, "loss": falling(s)} for s in STEPS]}),
    "a bare list": json.dumps([{"step": s, "loss": falling(s)} for s in STEPS], indent=1),
    "epochs only": "\n".join(json.dumps({"epoch": s / 100, "train_loss": falling(s), "val_loss": 2.0}) for s in STEPS),
    "lists": json.dumps({"loss": [falling(s) for s in STEPS], "val_loss": [2.0 for s in STEPS]}),
    "named numbers": "\n".join(f"12:00 INFO step={s} train_loss={falling(s)} lr=1e-4" for s in STEPS),
    "words": "\n".join(f"iter {s}: loss {falling(s)}, time 23ms" for s in STEPS),
    "wrapped numbers": "\n".join(f"{{'loss': np.float64({falling(s)}), 'epoch': {s / 100}}}" for s in STEPS),
    "a progress bar": "".join(
        f"\r {s}%|##| {s}/120 [00:01]{{'loss': {falling(s)}, 'epoch': {s / 100}}}" for s in STEPS
    ),
    "a CSV of W&B": '"Step","run - train/loss"\n' + "\n".join(f'"{s}","{falling(s)}"' for s in STEPS),
    "a CSV of Lightning": "epoch,step,train_loss_step\n" + "\n".join(f"0,{s},{falling(s)}" for s in STEPS),
    "a CSV with capitals": "Step,Train_Loss,Val_Loss,LR\n" + "\n".join(f"{s},{falling(s)},2.0,1e-3" for s in STEPS),
    "costs": "Read 99 lines.\n" + "\n".join(f"iter: {s}, cost: {falling(s)}" for s in STEPS),
    "a loss at an iteration": "\n".join(f"Loss at iteration {s}: {falling(s)}" for s in STEPS),
    # An evaluation's batches are counted by themselves.
    "a CSV of Lightning with evaluations": "epoch,step,train_loss_step,train_loss_epoch,val_loss_step,val_loss_epoch\n"
    + "\n".join(f"0,{s},{falling(s)},,,\n,0,,,9.0,\n,1,,,7.0,\n0,{s},,,,2.0\n0,{s},,3.0,," for s in STEPS),
    "parts of a loss": "epoch,train/box_loss,train/cls_loss\n" + "\n".join(f"{s},0,{falling(s)}" for s in STEPS),
    "a Markdown table": "Step | Training Loss | Validation Loss\n-- | -- | --\n"
    + "\n".join(f"{s} | {falling(s)} | 2.0" for s in STEPS),
    "a model card": "# A model\n\n| Training Loss | Epoch | Step | Validation Loss |\n|:-----:|:---:|:---:|:---:|\n"
    + "\n".join(f"| {falling(s)} | {s / 100} | {s} | 2.0 |" for s in STEPS)
    + "\n\n### Framework versions\n",
    "tabs": "Epoch\tTrain Loss\tVal Loss\t\n" + "\n".join(f"{s}.0\t{falling(s)}\t2.0\t" for s in STEPS),
    "tabs, with nan where there is nothing": "Step\tTrain loss\tValid loss\n"
    + "\n".join(f"{s}\t{falling(s)}\tnan\n{s}\tnan\t2.0" for s in STEPS),
    "build-nanogpt": "\n".join(f"{s} val 2.0\n{s} hella 0.25\n{s} train {falling(s)}" for s in STEPS),
    "hyphens": "Epoch-Num\tTrain-Loss\tValid-Loss\t\n" + "\n".join(f"{s}.0\t{falling(s)}\t2.0\t" for s in STEPS),
    "two sets": "\n".join(
        f"step {s:5} | train {falling(s)} | val 2.0 | lr 1e-3\n    saved best.pt (val 2.0)" for s in STEPS
    ),
    "a number first": "\n".join(f"{s} | loss {falling(s)} | lr 3.0e-04 | 13597.70ms" for s in STEPS),
    "fairseq": "\n".join(f"epoch 001: {s} / 614 loss={falling(s)}, ppl=9, num_updates={s}, lr=0.05" for s in STEPS),
    "two counts of epochs": "\n".join(f"Epoch 1, Step {s}, Loss: {falling(s)} Beginning of Epoch 2/18" for s in STEPS),
    "a mean beside it": "\n".join(f"step {s} loss: {falling(s)} mean_loss: 7.0 dev loss: 2.0" for s in STEPS),
    "brackets and quotes": "\n".join(
        f"12:00 | [Loss] {falling(s)} | [step]   {s} | 'lr': 0.001, 'acc': 0.3" for s in STEPS
    ),
    "full-width colons": "\n".join(f"训练 step\uff1a{s}, Loss\uff1a{falling(s)}" for s in STEPS),
    "a total": "\n".join(f"[0/100][step:{s}]  Totalloss:{falling(s)} CTCloss: 5.0 L2loss: 0.2" for s in STEPS),
    "MLflow's export": '"Run","Run ID","metric","step","timestamp","value"\n'
    + "\n".join(f'"a","f8","loss","{s}","17618841","{falling(s)}"' for s in STEPS),
    "parts and a total": "\n".join(
        f"step {s} ce loss 1.9, aux loss 0.01, total loss {falling(s)} grad acc: 8" for s in STEPS
    ),
    "a first line with a tab": "INFO\tusing loss function: CrossEntropy\n"
    + "\n".join(f"step {s}\tloss {falling(s)}" for s in STEPS),
    "a mean alone": "\n".join(f"iter: {s}  mean_loss: {falling(s)} best_mean_loss: inf" for s in STEPS),
    "a step in brackets": "\n".join(f"train_batch_loss[ {s} ]:  {falling(s)}" for s in STEPS),
    "an epoch and a batch in brackets": "\n".join(
        f"Loss [{1 + i // 3}, {i % 3}00](epoch, minibatch):  {falling(s)}" for i, s in enumerate(STEPS)
    ),
    "a loss and its mean in brackets": "\n".join(
        f"train step [{s}/195], loss [   {falling(s)},    1.9]" for s in STEPS
    ),
    "printed tensors": "".join(f"tensor({falling(s)}, device='cuda:0')\n" for s in STEPS),
    "Marian": "\n".join(
        f"[2019-06-05] Ep. 1 : Up. {s} : Sen. 9,600 : Cost {falling(s)} : Time 9.5s : 3200.17 words/s\n"
        f"[2019-06-05] [valid] Ep. 1 : Up. {s} : ce-mean-words : 2.0 : new best\n"
        f"[2019-06-05] [valid] Ep. 1 : Up. {s} : perplexity : 7.4 : new best"
        for s in STEPS
    ),
    "names of their own": "\n".join(
        json.dumps({"step": s, "train_closs": falling(s), "val_closs": 2.0}) for s in STEPS
    ),
    "units in names": "\n".join(
        json.dumps({"step": s, "train_loss_nats_per_byte": falling(s), "validation_loss_nats_per_byte": 2.0})
        for s in STEPS
    ),
    "a table of a notebook": "<table><thead><tr><th>Step</th><th>Training Loss</th><th>Validation Loss</th></tr>"
    + "".join(f"<tr>\n<td>{s}</td>\n<td>{falling(s)}</td><td>2.0</td></tr>" for s in STEPS)
    + "</table>\n{'eval_loss': 2.0, 'epoch': 5.0}",
    "litgpt": "\n".join(f"Epoch 1 | step {s} | loss train: {falling(s)}, val: 2.0 | iter time: 39.7 s" for s in STEPS),
    "lines of evaluations": "\n".join(
        f"Step {s} - |param|=8.5e+02 loss={falling(s)} ppl=86.1\nValidation - loss=2.0 ppl=7.4 best_loss=inf"
        for s in STEPS
    ),
    "a set after the epoch": "\n".join(
        f"Epoch {i}     Train,   psnr 25.85   loss = {falling(s)}\nEpoch {i}     Valid,   psnr 23.7   loss = 2.0"
        for i, s in enumerate(STEPS)
    ),
    "aligned columns": "2022-08-23 15:41:01,352  epoch   Step     Loss\n2022-08-23 15:41:01,352 ========\n"
    + "\n".join(f"2022-08-23 15:41:02,716       0     {s}.0   {falling(s)}" for s in STEPS),
    "a table after a sentence": "Results of the fine-tune:\n\nStep\tTraining Loss\tValidation Loss\tAccuracy\n"
    + "\n".join(f"{s}\t{falling(s)}\t2.0\t{{'accuracy': 0.877}}" for s in STEPS),
    "times with a comma before tabs": "13:28:48,101 INFO log : Step\tTrain loss\tValid loss\n"
    + "\n".join(f"13:28:49,101 INFO log : {s}\t{falling(s)}\t2.0" for s in STEPS),
    "evaluations after a time": "\n".join(
        f"2024-01-01 10:00:00,12 INFO Train - step: {s} - loss: {falling(s)}\n"
        "2024-01-01 10:00:01,12 INFO Validation: average loss 2.0 best val loss 0.1"
        for s in STEPS
    ),
    "fairseq's evaluations": "\n".join(
        f"2020-08-01 10:00:00 | INFO | train | epoch 001 | loss {falling(s)} | num_updates {s}\n"
        f"2020-08-01 10:00:01 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 2.0 | num_updates {s}"
        for s in STEPS
    ),
    "a test set": "\n".join(
        f"step {s} loss: {falling(s)}\nTest set: Average loss: 2.0, Accuracy: 9100/10000 (91%)" for s in STEPS
    ),
    "the best so far": "\n".join(f"step {s} | loss {falling(s)} | val loss 2.0 | best val loss 0.1" for s in STEPS),
    "another table between": "\n".join(
        f"Step   GPU_mem   loss\n{s}     2.1G   {falling(s)}\nClass   Images   mAP50\nall   128   0.7" for s in STEPS
    ),
    "words that are no table": "loss   function\na   1\nb   2\nc   3\n"
    + "\n".join(f"{s} train {falling(s)}" for s in STEPS),
    "a host called dev": "\n".join(f"dev-server-1: step {s} loss {falling(s)}" for s in STEPS),
    "weights of a loss": "\n".join(f"step {s} loss [5, 10] weights: 0.5, train loss {falling(s)}" for s in STEPS),
    "litgpt's two counts": "\n".join(
        f"Epoch 1 | iter {s} step {s // 4} | loss train: {falling(s)}, val: n/a\niter {s}: val loss 2.0" for s in STEPS
    ),
    "a history among other keys": json.dumps(
        {
            "best": 0.1,
            "history": [{"step": s, "train_loss": falling(s), "val_loss": 2.0} for s in STEPS],
            "sizes": [{"rows": 3}],
        }
    ),
    "a notebook": json.dumps(
        {
            "nbformat": 4,
            "cells": [
                {"cell_type": "markdown", "source": ["loss: 9"]},
                {"outputs": [{"name": "stdout", "text": [f"step {s} loss {falling(s)}\n" for s in STEPS]}]},
            ],
        }
    ),
    "columns without a header": "\n".join(f"{s},{falling(s)}" for s in STEPS),
    "three columns without a header": "\n".join(f"{s}\t{falling(s)}\t2.0" for s in STEPS),
    "a list of losses": json.dumps([falling(s) for s in STEPS]),
    "a list of lists": json.dumps([[s, falling(s), 2.0] for s in STEPS], indent=1),
    "a sum at the end of an epoch": "\n".join(f"step {s}; loss: {falling(s)}; acc: 0.8" for s in STEPS)
    + "\nEpoch: 1 training finished. Time: 325.03s,  total loss: 285254.9\ntotalloss: 285254.9",
    "losses of iterations": "\n".join(f"iteration : {s}, losses : {falling(s)}" for s in STEPS),
    "Tinker's cookbook": "\n".join(
        json.dumps({"step": s, "learning_rate": 2e-5, "train_mean_nll": falling(s), "test/nll": 2.0}) for s in STEPS
    ),
    "steps in epochs": "\n".join(
        json.dumps({"epoch": i // 6, "step": i % 6, "loss": falling(s)}) for i, s in enumerate(STEPS)
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_other_texts_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "log").write_text(TEXTS[name], encoding="utf-8")
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx([falling(s) for s in STEPS])
    if not found.counted and name != "lists":
        assert list(found.loss.steps) == list(STEPS)
    assert len(found.eval_loss) == (12 if "2.0" in TEXTS[name] else 0)
    assert found.restarts == 0


def test_accuracies_are_read_in_percent_too(tmp_path: Path) -> None:
    lines = [f"Epoch {i} [600/1000]\tAccuracy: {40 + i}.5%\tLoss: {2 - 0.1 * i:.1f}" for i in range(8)]
    (tmp_path / "log").write_text("\n".join(lines))
    assert read(tmp_path / "log").measures["accuracy"].values == pytest.approx([0.405 + 0.01 * i for i in range(8)])
    (tmp_path / "history.csv").write_text("epoch,loss,val_loss,val_accuracy\n0,1.0,1.1,0.5\n1,0.9,1.0,0.6\n")
    assert list(read(tmp_path / "history.csv").measures["eval_accuracy"].values) == [0.5, 0.6]
    (tmp_path / "log").write_text("\n".join(f"step {s} loss {falling(s)} grad acc: 8" for s in STEPS))
    assert "accuracy" not in read(tmp_path / "log").measures


def test_accuracies_of_keras_are_read(tmp_path: Path) -> None:
    lines = [
        f"93/93 [====] - 8s - loss: {2 - 0.1 * i:.2f} - sparse_categorical_accuracy: 0.1815 - val_loss: 1.6371 "
        "- val_sparse_categorical_accuracy: 0.1150"
        for i in range(8)
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    found = read(tmp_path / "log.txt")
    assert list(found.measures["eval_accuracy"].values) == [0.115] * 8
    assert list(found.measures["accuracy"].values) == [0.1815] * 8


def test_a_row_of_mlflows_export_may_be_cut_off(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text("Run,metric,step,value\nr1,loss,1,2.0\nr1,loss,2,1.9\nr1,loss\n")
    assert list(read(tmp_path / "chart.csv").loss.values) == [2.0, 1.9]


def test_a_long_line_of_dashes_is_read_in_no_time(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("| loss |\n" + "-" * 200_000 + "x")
    with pytest.raises(InputError, match="holds no losses"):
        read(tmp_path / "log")


@pytest.mark.parametrize("line", ["[oss " + "a" * 300_000, "loss [" + "1" * 300_000, "Ep. 1 : Up. 1 :" * 20_000])
def test_a_long_line_without_a_loss_is_read_in_no_time(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.txt").write_text("\n".join([line, *(f"step {s} loss {falling(s)}" for s in STEPS)]))
    assert len(read(tmp_path / "log.txt").loss) == len(STEPS)


def test_markup_that_is_no_html_ends_the_tables(tmp_path: Path) -> None:
    lines = ["<table><tr><th>loss</th></tr>[<![Cost 2.0", *(f"step {s} loss {falling(s)}" for s in STEPS)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert len(read(tmp_path / "log.txt").loss) == len(STEPS)


def test_nulls_beside_evaluations_are_what_was_not_logged(tmp_path: Path) -> None:
    rows = [{"epoch": i, "loss": None, "eval_loss": falling(10 * i)} for i in range(1, 11)]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    assert diagnose(read(tmp_path / "history.json")).label == "healthy"


def test_output_of_powershell_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(TEXTS["words"], encoding="utf-16")
    assert len(read(tmp_path / "log.txt").loss) == 12


def test_nulls_are_nan_only_where_a_loss_should_be(tmp_path: Path) -> None:
    """The first LLaMA-Factory wrote null for what a row does not have; JSON-safe loggers write it for NaN."""
    lines = [
        {"current_steps": 10, "loss": 2.0, "eval_loss": None, "learning_rate": 1e-4},
        {"current_steps": 10, "loss": None, "eval_loss": 1.9, "learning_rate": None},
        {"current_steps": 20, "loss": None, "eval_loss": None, "learning_rate": 1e-4},
        {"current_steps": 20, "loss": None, "eval_loss": None, "learning_rate": None},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read(tmp_path / "log.jsonl")
    assert list(found.loss.values[:1]) == [2.0]
    assert math.isnan(found.loss.values[1])
    assert list(found.eval_loss.values) == [1.9]


def test_a_log_of_nothing_but_nulls_is_nan(tmp_path: Path) -> None:
    (tmp_path / "loss_history.json").write_text(json.dumps([{"epoch": i, "loss": None} for i in range(1, 9)]))
    assert diagnose(read(tmp_path / "loss_history.json")).label == "diverged"


def test_a_resumed_log_goes_back_and_a_restarted_one_starts_again(tmp_path: Path) -> None:
    def log(*steps: int) -> Curve:
        lines = [json.dumps({"step": s, "loss": 2.0 + i / 100}) for i, s in enumerate(steps)]
        (tmp_path / "log.jsonl").write_text("\n".join(lines))
        return read(tmp_path / "log.jsonl")

    resumed = log(10, 20, 30, 40, 50, 35, 45)
    assert (list(resumed.loss.steps), resumed.restarts) == ([10, 20, 30, 35, 45], 0)
    restarted = log(10, 20, 30, 40, 50, 5, 15, 25)
    assert (list(restarted.loss.steps), restarted.restarts) == ([5, 15, 25], 1)
    assert "starts again once" in restarted.summary()


def test_several_eval_sets_are_several_curves(tmp_path: Path) -> None:
    history = [{"step": s, f"eval_{name}_loss": value} for s in STEPS for name, value in (("a", 1.0), ("b", 3.0))]
    history += [{"step": 130, "eval_a_loss": 0.9}, {"step": 130, "eval_a_nll_loss": 7.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = read(tmp_path / "trainer_state.json")
    assert (found.eval_name, len(found.eval_loss)) == ("a", 13)
    assert np.all(found.eval_loss.values <= 1.0)
    assert "b" in found.other_evals
    assert np.all(found.other_evals["b"].values == 3.0)


def test_a_table_of_several_runs_is_several_logs(tmp_path: Path) -> None:
    (tmp_path / "wandb.csv").write_text(
        '"Step","one - loss","one - loss__MIN","two - loss"\n' + "".join(f'"{s}","1.0","0.5","2.0"\n' for s in STEPS)
    )
    logs = log_readers.read_logs(str(tmp_path / "wandb.csv"), nowhere)
    assert [log.source for log in logs] == [f"{tmp_path / 'wandb.csv'}: one", f"{tmp_path / 'wandb.csv'}: two"]
    assert [set(log.curve.loss.values) for log in logs] == [{1.0}, {2.0}]
    with pytest.raises(InputError, match="has 2 runs"):
        read(tmp_path / "wandb.csv")


def test_a_folder_is_all_logs_under_it(tmp_path: Path) -> None:
    for name in ("a/trainer_state.json", "a/checkpoint-100/trainer_state.json", "b/deep/er/console.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(LOGS / Path(name).name, tmp_path / name)
    (tmp_path / "b" / "data.jsonl").write_text('{"text": "no log"}\n')
    (tmp_path / "b" / "notes.txt").write_text("the loss was low\n")
    assert [str(Path(path).relative_to(tmp_path)) for path in logs_in(tmp_path)] == [
        "a/checkpoint-100/trainer_state.json",
        "a/trainer_state.json",
        "b/deep/er/console.txt",
    ]


def test_one_file_that_cannot_be_read_is_told_and_the_others_are_answered(tmp_path: Path) -> None:
    shutil.copy(LOGS / "trainer_state.json", tmp_path / "good.json")
    (tmp_path / "bad.json").write_text('{"log_history": [')
    result = lrsweep_here("diagnose", "bad.json", "good.json", "missing.json", cwd=tmp_path)
    assert result.returncode == 2
    assert "good.json: healthy" in result.stdout
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == ["bad.json", "missing.json"]


def test_the_epoch_above_a_line_of_keras_is_read(tmp_path: Path) -> None:
    lines = [f"Epoch {at}/150\n500/500 [=====] - 14s 3ms/step - loss: 0.14 - val_loss: 0.2{at}" for at in range(52, 66)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    found = read(tmp_path / "log.txt")
    assert (list(found.epoch.values), found.begins) == (list(range(52, 66)), False)
    assert found.eval_loss.values[0] == 0.252


def test_a_log_with_the_runtime_in_every_row_has_its_losses(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 3.0 - 0.1 * step, "train_runtime": 15.0 * step} for step in range(1, 11)]
    mean = {"step": 10, "train_loss": 2.45, "train_runtime": 160.0}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, mean]}))
    assert list(read(tmp_path / "trainer_state.json").loss.values) == pytest.approx([row["loss"] for row in rows])


def test_of_several_losses_that_are_parts_the_first_is_read(tmp_path: Path) -> None:
    """Others on the next lines would look like the same loss later on."""
    log = tmp_path / "train.log"
    log.write_text(
        "".join(
            f"epoch: 1, {i}/125, lr: 0.0001\n    recon loss: {5 + i / 10:.3f}  ppl: 293.1, style loss: 0.965\n"
            f"    dis real loss: 1.091, dis fake loss: 1.228\n"
            for i in range(8)
        )
    )
    assert read(log).loss.values == pytest.approx([5 + i / 10 for i in range(8)])
    # A loss that is told once is not the run's.
    log.write_text("warmup loss: 10.9\n" + "".join(f"iter {i} lm loss: {5 - i / 10:.2f}\n" for i in range(8)))
    assert read(log).loss.values == pytest.approx([5 - i / 10 for i in range(8)])
    # Words that say which rows a loss is of, or a mean, name no part.
    log.write_text("".join(f"step {i} | train loss: {3 - i / 10:.2f} | val loss: {4 - i / 10:.2f}\n" for i in range(8)))
    assert read(log).loss.values == pytest.approx([3 - i / 10 for i in range(8)])
    assert read(log).eval_loss.values == pytest.approx([4 - i / 10 for i in range(8)])


def test_short_names_of_a_training_and_a_validation_loss_are_read(tmp_path: Path) -> None:
    log = tmp_path / "train.txt"
    log.write_text("".join(f"Epoch [{i}]--->Tloss: {12 - i:.4f} Vloss: {13 - i:.4f}\n" for i in range(1, 9)))
    assert list(read(log).loss.values) == [12 - i for i in range(1, 9)]
    assert list(read(log).eval_loss.values) == [13 - i for i in range(1, 9)]


@pytest.mark.parametrize(
    ("line", "evaluated"),
    [
        ("ITER {s} TRAINING. loss_vae: {a}; loss_kl: 267.5; Grad_norm: 7.5e-01", False),
        ("Epoch  1, {s}/37527; acc:   3.99; ppl: 12792.57; xent:   {a}; 3438 src tok/s", False),
        ("[{s}]\teval-logloss:{b}\ttrain-logloss:{a}", True),
        ("[LightGBM] [{s}]\ttraining's multi_logloss: {a}", False),
        ("Epoch {s}/1000 | train: {a} (1.3238 bpd) | val: {b} (1.2658 bpd) | z_mean: 0.001", True),
        ("Iter[{s}]/[120] mace: 31.01 loss sum: {a} loss unsuper: 1.7513 lr=0.00027823", False),
        ("epoch {s} nll {a} best nll 0.1", False),
        ("best_nll 0.1 | nll {a}.", False),
        ("nll_weight: 1.0 nll: {a}", False),
        ("step {s} | train {a} | val {b} | best val loss 1.2", True),
        ("step {s}: train perplexity: 1.0 nll: {a} val nll: {b}", True),
        ("[iter {s}] d_adv_loss: 3.1856  f_slf_loss: {a}  f_adv_loss: 1.3287", False),
    ],
)
def test_losses_under_names_of_their_own_are_read(tmp_path: Path, line: str, evaluated: bool) -> None:
    lines = [line.format(s=s, a=falling(s), b=2.5) for s in STEPS]
    (tmp_path / "log").write_text("\n".join(["Namespace(lr=0.1)", *lines, "done in 23 s"]))
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx([falling(s) for s in STEPS])
    assert list(found.eval_loss.values) == ([2.5] * 12 if evaluated else [])


def test_a_perplexity_alone_is_read_as_a_loss(tmp_path: Path) -> None:
    lines = [f"global step {s} lr 1 step-time 0.91s ppl {math.exp(falling(s)):.4f}" for s in STEPS]
    (tmp_path / "log").write_text("\n".join(lines))
    assert read(tmp_path / "log").loss.values == pytest.approx([falling(s) for s in STEPS], abs=1e-3)


NO_LOSSES = (
    "d_loss: 66.7, g_loss: 0.0\n" * 9,
    "train: yes\nval: no\n" * 9,
    "train: 0.8, val: 0.2\n" * 2,
    "acc 0.5 loss_scale: 128\n" * 9,
    "fold 1 train: 4500 | val: 500\n" * 9,
    "acc train: 0.9 | val: 0.8\n" * 9,
    "took train: 12.3 s, val: 1.3 s\n" * 9,
    "no_loss: 3\n" * 9,
    "train nan\nval nan\n" * 9,
    "We train 100 models and val 20.\n" * 9,
    "nll: 2.9nats\n" * 9,
    "best nll 1.2\n" * 9,
)


@pytest.mark.parametrize("text", NO_LOSSES)
def test_what_is_no_loss_is_none_under_any_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(InputError, match="holds no losses"):
        read(tmp_path / "log")


def test_perplexities_of_training_and_of_evaluations_are_told_apart(tmp_path: Path) -> None:
    a, b = (600, 200, 100, 60, 30, 15, 8, 5), (620, 260, 180, 150, 140, 160, 190, 230)
    lines = [
        f"Epoch: {i} Train Perplexity: {x:.3f}\nEpoch: {i} Valid Perplexity: {y:.3f}"
        for i, (x, y) in enumerate(zip(a, b, strict=True), 1)
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx(np.log(a))
    assert found.eval_loss.values == pytest.approx(np.log(b))
    assert diagnose(found).label == "overfitting"
    (tmp_path / "log").write_text("\n".join(f"step {i} ppl {45231.2 - i:,}" for i in range(9)))
    assert read(tmp_path / "log").loss.values == pytest.approx(np.log(45231.2 - np.arange(9)))


def test_steps_beside_losses_of_other_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(f"step {50_000 + s}: xent {falling(s)}" for s in STEPS))
    found = read(tmp_path / "log")
    assert list(found.loss.steps) == [50_000 + s for s in STEPS]
    assert not found.begins


def test_thousands_with_a_comma_are_one_number(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"loss: {loss}, x: 4\n" for loss in ("8.30", "113.17", "1,703.49", "9,1")))
    assert list(read(tmp_path / "log").loss.values) == [8.30, 113.17, 1703.49, 9.0]


def test_a_semicolon_in_a_header_with_commas_is_no_separator(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(["step,loss,notes (a;b)", *(f"{s},{falling(s)},x" for s in STEPS)]))
    assert read(tmp_path / "log").loss.values == pytest.approx([falling(s) for s in STEPS])
    lines = ["Training with Adam; logging train_loss", *(f"step {s} loss {falling(s)}" for s in STEPS)]
    (tmp_path / "log").write_text("\n".join(lines))
    assert read(tmp_path / "log").loss.values == pytest.approx([falling(s) for s in STEPS])


def test_large_numbers_of_a_table_with_semicolons_are_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("step;loss\n1;2,5\n2;1.204,1\n3;12.440.000,2\n4;1,234.5\n5;7.25\n")
    assert list(read(tmp_path / "log").loss.values) == [2.5, 1204.1, 12440000.2, 1234.5, 7.25]


@pytest.mark.parametrize("point", [".", ","])
def test_a_table_with_semicolons_is_read(tmp_path: Path, point: str) -> None:
    rows = [f"{s};{str(falling(s)).replace('.', point)};{'2.5'.replace('.', point)}" for s in STEPS]
    (tmp_path / "log").write_text("\n".join(["epoch;loss;val_loss", *rows]))
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx([falling(s) for s in STEPS])
    assert list(found.eval_loss.values) == [2.5] * 12


def test_a_curve_that_tensorboards_page_exports_is_read(tmp_path: Path) -> None:
    rows = [f"1688704569.35,{s},{falling(s)}" for s in STEPS]
    (tmp_path / "log").write_text("\n".join(["Wall time,Step,Value", *rows]))
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx([falling(s) for s in STEPS])
    assert list(found.loss.steps) == list(STEPS)


def test_the_tag_in_tensorboards_name_says_what_the_curve_is(tmp_path: Path) -> None:
    table = "\n".join(['"Wall time","Step","Value"', *(f"1688704569.35,{s},{falling(s)}" for s in STEPS), "1,1"])
    names = {"train_loss": (12, 0), "loss": (12, 0), "eval_loss": (0, 12)}
    for tag, (losses, evaluations) in names.items():
        (tmp_path / f"run-x-tag-{tag}.csv").write_text(table)
        found = read(tmp_path / f"run-x-tag-{tag}.csv")
        assert (len(found.loss), len(found.eval_loss)) == (losses, evaluations), tag
    for tag in ("train_grad_norm", "train_epoch", "learning_rate", "eval_accuracy"):
        (tmp_path / f"run-x-tag-{tag}.csv").write_text(table)
        with pytest.raises(InputError, match="holds no losses"):
            read(tmp_path / f"run-x-tag-{tag}.csv")


def test_a_third_column_that_is_no_eval_loss_is_left_out(tmp_path: Path) -> None:
    for header, evaluations in (("step,nll,ppl", 0), ("step,nll,val_nll", 12)):
        (tmp_path / "log").write_text("\n".join([header, *(f"{s},{falling(s)},9.5" for s in STEPS)]))
        assert len(read(tmp_path / "log").eval_loss) == evaluations, header


def test_a_column_with_a_longer_name_is_a_loss(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(["train_loss_batch,epoch,step", *(f"{falling(s)},0,{s}" for s in STEPS)]))
    found = read(tmp_path / "log")
    assert found.loss.values == pytest.approx([falling(s) for s in STEPS])
    assert list(found.loss.steps) == list(STEPS)


def test_options_in_braces_before_the_losses_are_no_json(tmp_path: Path) -> None:
    lines = [f"step {s} loss {falling(s)}" for s in STEPS]
    (tmp_path / "log").write_text("\n".join(["{", "  hflip : true", "  epoch_step : {1 : 60}", "}", *lines]))
    assert read(tmp_path / "log").loss.values == pytest.approx([falling(s) for s in STEPS])
