"""The Python API: objects against files, a second sweep in the same process, interruption, and a running Trainer."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lrsweep
from lrsweep.api.overrides import override
from lrsweep.cli import report
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.files.paths import SweepFolder
from lrsweep.report.markdown import sweep_description, trial_description
from lrsweep.report.summary import read_summary

ROWS = [{"prompt": f"{i} and two make", "completion": f" {i + 2}, as everybody knows"} for i in range(24)]
# A sweep of two trials of a few steps, in this process.
TINY = {
    "executor": "inline",
    "tracking": "none",
    "search": "grid",
    "search.replicates": 1,
    "search.preflight": False,
    "space.optimizer.lr": [1e-4, 1e-2],
    "training.max_steps": 4,
    "training.eval_every": 2,
    "training.batch_size": 4,
    "data.max_length": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder for the whole module."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("api")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def from_objects(folder: Path) -> lrsweep.SweepResult:
    """A sweep over a loaded model and a Dataset."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    return lrsweep.sweep(
        "lora_lr", TINY, name="objects", model=model, tokenizer=tokenizer, data=Dataset.from_list(ROWS)
    )


def test_objects_give_the_losses_of_the_same_files(folder: Path, from_objects: lrsweep.SweepResult) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    overrides = [override(key, value) for key, value in TINY.items()]
    from_files = lrsweep.sweep(
        "lora_lr",
        [*overrides, "data.format=prompt_completion"],
        name="files",
        model=BASE,
        data="rows.jsonl",
        quiet=True,
    )
    # How many trials share a pass is measured, and changes the last digits.
    assert from_files.trials.eval_loss.tolist() == pytest.approx(from_objects.trials.eval_loss.tolist(), abs=1e-5)
    pd.testing.assert_frame_equal(from_files.curves(1), from_objects.curves(1), rtol=0, atol=1e-4)
    assert sorted(path.name for path in (folder / "outputs").glob("[!.]*")) == ["files", "objects"]


def test_what_a_result_says(from_objects: lrsweep.SweepResult) -> None:
    result = from_objects
    assert result.complete
    assert result.best is not None
    assert result.best.eval_loss == result.trials.eval_loss.min() == result.trials.loc[result.best.number].eval_loss
    assert [tie.number for tie in result.ties] == [result.best.number]
    assert (result.safe_range, result.noise) == (None, None)
    assert "highest learning rate tried" in result.inconclusive
    assert list(result.trials["optimizer.lr"]) == [1e-4, 1e-2]
    assert list(result.curves(0).index) == [0, 1, 2, 3, 4]
    assert "Best so far: optimizer.lr=0.01" in str(result)
    assert "<table" in result._repr_html_()
    with pytest.raises(InputError, match=r"trial 7: no such trial \(choices: 0, 1\)"):
        result.curves(7)


def test_figures_are_shown_by_jupyter_without_a_screen(from_objects: lrsweep.SweepResult) -> None:
    for name in ("loss_over_lr", "eval_curves"):
        png = from_objects.figure(name)._repr_png_()  # type: ignore[attr-defined]
        assert png.startswith(b"\x89PNG")
    with pytest.raises(InputError, match="needs complete trials on more axes"):
        from_objects.figure("parallel_coordinates")
    with pytest.raises(InputError, match=r"no such figure \(choices: loss_over_lr, "):
        from_objects.figure("los")


def test_the_best_config_for_a_trainer(from_objects: lrsweep.SweepResult, folder: Path) -> None:
    arguments = lrsweep.training_arguments("objects", output_dir=str(folder / "run"), max_steps=100)
    assert (arguments.learning_rate, arguments.max_steps) == (0.01, 100)
    assert arguments.per_device_train_batch_size == 4
    assert from_objects.to_lora_config().r == 8
    text = from_objects.export("trl", out=folder / "trl.yaml")
    assert "learning_rate: 0.01" in text.replace("1.0e-2", "0.01")
    assert (folder / "trl.yaml").read_text() == text


def test_the_summary_has_the_schema_in_docs(from_objects: lrsweep.SweepResult) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[1] / "docs" / "summary.schema.json").read_text())
    summary = json.loads((from_objects.folder.absolute() / "summary.json").read_text())
    jsonschema.validate(summary, schema)
    assert summary.keys() == schema["properties"].keys()
    assert summary["trials"][0].keys() == schema["properties"]["trials"]["items"]["properties"].keys()


def test_descriptions_say_the_answer_and_each_trials_remedy(from_objects: lrsweep.SweepResult) -> None:
    summary = read_summary(SweepFolder("objects"))
    described = sweep_description(summary)
    assert described.startswith("**Best so far: optimizer.lr=0.01 with eval loss ")
    assert described.endswith("![Final eval loss](artifact:loss_over_axis.png)")
    texts = [trial_description(summary, result) for result in summary.results]
    assert [text.split("**")[1].replace(" ", "_") for text in texts] == from_objects.trials.label.tolist()


@pytest.mark.parametrize("given", ["objects", "outputs/objects", "outputs/objects/", "absolute"])
def test_load_takes_a_name_or_a_path(from_objects: lrsweep.SweepResult, folder: Path, given: str) -> None:
    path = str(folder / "outputs" / "objects") if given == "absolute" else given
    assert lrsweep.load(path).best == from_objects.best


def test_load_says_which_sweeps_there_are(from_objects: lrsweep.SweepResult) -> None:
    with pytest.raises(InputError, match=r"nothing: no such sweep in outputs/ \(choices: .*objects"):
        lrsweep.load("nothing")


def test_an_interrupted_sweep_goes_on_with_the_same_call(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = folder / "outputs" / "interrupted" / "trials" / "0000" / "metrics.jsonl"

    def interrupt() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    def run() -> lrsweep.SweepResult:
        return lrsweep.sweep("lora_lr", {**TINY, "training.max_steps": 30}, name="interrupted", data=ROWS, quiet=True)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"lrsweep.load\('interrupted'\)"):
        run()
    assert signal.getsignal(signal.SIGINT) is before
    assert not lrsweep.load("interrupted").complete
    if len(lrsweep.load("interrupted").trials):
        report.run(["interrupted"])
        assert "interrupted is not complete: " in capsys.readouterr().out
    result = run()
    assert result.complete
    assert list(result.trials.steps) == [30, 30]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"overrides": ["optimizer.lr=-1"], "data": ROWS}, "optimizer.lr"),
        ({"overrides": "optimizer.lr=1", "data": ROWS}, "give a list of overrides"),
        ({"data": [{"question": "a", "answer": "b"}]}, "data.format: missing"),
        ({"data": []}, "data.path: no rows"),
        ({"data": [{"text": {1, 2}}]}, "data.path: row 0 cannot be written as JSON"),
        ({"data": 7}, "data.path: int; give a Dataset"),
        ({"eval_data": ROWS}, "eval_data: goes with data"),
        ({"model": 7}, "model: int; give a loaded PreTrainedModel"),
        ({"tokenizer": object()}, "tokenizer: goes with a loaded model"),
        ({"data": ROWS[:1], "overrides": TINY}, "leave nothing to train on"),
    ],
)
def test_what_is_refused_leaves_nothing(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        lrsweep.sweep(quiet=True, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_python_values_are_hydras() -> None:
    values = [
        None,
        True,
        3,
        1e-5,
        1e22,
        "null",
        "1e-4",
        "it's",
        "a b",
        "C:\\",
        "\\'",
        "[x]",
        "",
        [1, [2.5, "a,b"]],
        {"a": "b c"},
    ]
    keys = {f"optimizer.kwargs.k{number}": value for number, value in enumerate(values)}
    config = sweep_config(["+sweep=lora_lr", *(override(key, value) for key, value in keys.items())])
    assert list(config.optimizer.kwargs.values()) == values


def test_numpys_values_are_pythons() -> None:
    assert override("space.optimizer.lr", np.logspace(-5, -3, 3)) == "space.optimizer.lr=[1e-05,0.0001,0.001]"
    assert override("space.optimizer.lr", list(np.logspace(-5, -4, 2))) == "space.optimizer.lr=[1e-05,0.0001]"
    assert override("training.max_steps", np.int64(5)) == "training.max_steps=5"


def test_a_curve_is_diagnosed_from_its_log_history() -> None:
    rows = [
        {"step": 5 * i, "eval_own_loss": 4 + 0.5 * i, "loss": 4 + 0.5 * i, "learning_rate": 1e-3} for i in range(12)
    ]
    assert lrsweep.diagnose(rows).label in ("too_high", "diverged", "overfitting")
    assert lrsweep.diagnose([]).label == "unknown"


def test_the_callback_diagnoses_a_stock_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = [
        {"input_ids": ids, "labels": ids}
        for ids in (tokenizer(row["prompt"] + row["completion"])["input_ids"][:12] for row in ROWS)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        learning_rate=3.0,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = lrsweep.DiagnosisCallback()
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(BASE),
        arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[callback],
    )
    trainer.train()
    assert callback.diagnosis is not None
    assert callback.diagnosis.label in ("too_high", "diverged")
    labels = [row["diagnosis"] for row in trainer.state.log_history if "diagnosis" in row]
    assert labels[-1] == callback.diagnosis.label
    assert f": {callback.diagnosis.label}: " in caplog.text
