"""Logs that once ended in a wrong answer, an error of Python's, or a wait."""

import json
import os
from pathlib import Path

import pytest

from lrsweep.analysis.diagnosis import curve, diagnose
from lrsweep.analysis.log_readers import read_logs
from lrsweep.analysis.log_readers.rows import normalised
from lrsweep.cli.diagnose import run
from lrsweep.errors import InputError


def no_mlflow(_: str) -> list[dict[str, float]]:
    raise AssertionError


@pytest.mark.parametrize("final", ["train_loss", "train/train_loss"])
def test_the_mean_of_a_whole_run_is_no_point_of_its_curve(final: str) -> None:
    """TensorBoard and MLflow have a row for each number, so nothing beside the mean says what it is."""
    plain = "loss" if final == "train_loss" else "train/loss"
    losses = [2.0 - 0.05 * step for step in range(20)] + [0.0] * 10
    rows = [{"step": step, plain: loss} for step, loss in enumerate(losses, 1)]
    named = list(normalised([*rows, {"step": 30, final: 0.6}]))
    assert [row["loss"] for row in named if "loss" in row] == losses
    assert diagnose(curve(named)).label == "diverged"


def test_a_program_that_calls_its_loss_so_is_read() -> None:
    named = list(normalised([{"step": step, "train_loss": 1.0 / step} for step in range(1, 9)]))
    assert [row["loss"] for row in named] == [1.0 / step for step in range(1, 9)]


def test_a_folder_and_a_log_in_it_are_one_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "trainer_log.jsonl"
    log.write_text("".join(json.dumps({"current_steps": i, "loss": 2 - 0.1 * i}) + "\n" for i in range(1, 12)))
    assert run([str(tmp_path), str(log)]) == 0
    assert capsys.readouterr().out.count("judged:") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", '{"log_history": [{"step": 1, "loss": ' + "9" * 5000 + "}]}"),
        ("log.jsonl", '{"step": 1, "loss": ' + "9" * 5000 + '}\n{"step": 2, "loss": 1}\n'),
        ("table.csv", "step,loss,text\n1,2.0," + "x" * 200_000 + "\n"),
        ("n" * 300, None),
    ],
)
def test_odd_content_is_an_error_of_one_line(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError):
        read_logs(str(tmp_path / name), no_mlflow)


def test_a_folder_with_half_a_disk_in_it_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrsweep.analysis.log_readers.sources._MOST", 10)
    for number in range(11):
        (tmp_path / str(number)).mkdir()
    (tmp_path / "train.log").write_text("{'loss': 2.0, 'epoch': 0.1}\n")
    with pytest.raises(InputError, match="has more than 10 files below it; name a folder nearer to the logs"):
        run([str(tmp_path)])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.log")
    with pytest.raises(InputError, match="a device or a pipe"):
        read_logs(str(tmp_path / "train.log"), no_mlflow)
    with pytest.raises(InputError, match="without a log in it"):
        run([str(tmp_path)])


@pytest.mark.parametrize("line", ['loss {"' + 'a" "' * 200_000, "loss" + " " * 200_000 + "x"])
def test_a_long_line_is_read_once(line: str, tmp_path: Path) -> None:
    # Time that grows with the square of its length would be half an hour.
    log = tmp_path / "train.log"
    log.write_text("".join(f"{{'loss': {2 - i / 10}, 'epoch': {i / 10}}}\n" for i in range(1, 9)) + line + "\n")
    assert len(read_logs(str(log), no_mlflow)[0].curve.loss) == 8


@pytest.mark.parametrize("config", ["a: !!bool x\n", 'a: !!int ""\n', "a: !!timestamp x\n", "a: &b [*b]\n", "[" * 999])
def test_a_config_that_cannot_be_read_does_not_hide_its_log(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {i}, "loss": {2 - i / 10}}}\n' for i in range(1, 12)))
    assert read_logs(str(tmp_path / "log.jsonl"), no_mlflow)[0].arguments == {}


def test_a_run_may_be_called_anything(tmp_path: Path) -> None:
    rows = "".join(f"{i},{2 - i / 10},{3 - i / 10}\n" for i in range(1, 12))
    (tmp_path / "wb.csv").write_text(f"Step,g/one - train/loss,two - train/loss\n{rows}")
    assert run([str(tmp_path / "wb.csv"), "--plot"]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"wb.csv.g_one.png", "wb.csv.two.png"}


def test_a_run_that_ends_worse_than_untrained_is_not_told_to_raise_its_rate() -> None:
    rows = [{"step": step, "loss": 4.3} for step in range(1, 11)]
    found = diagnose(curve([{"step": 0, "eval_loss": 4.254}, *rows, {"step": 10, "eval_loss": 4.438}]))
    assert found.label != "too_low"
