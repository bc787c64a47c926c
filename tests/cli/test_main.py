"""The command line: help at once, exports that their tools read. What it refuses is in tests/faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from lrsweep.dialects import DIALECTS
from tests.conftest import FinishedSweep, lrsweep, lrsweep_here


def test_help_lists_commands_groups_and_sweeps(tmp_path: Path) -> None:
    said = lrsweep("--help", cwd=tmp_path).stdout
    for word in (
        "lrsweep export NAME",
        "lrsweep ui",
        "lrsweep doctor",
        "lora_lr",
        "finetune: freeze, full, lora, qlora",
    ):
        assert word in said


def test_cfg_shows_the_composed_config_and_runs_nothing(tmp_path: Path) -> None:
    shown = lrsweep_here("+sweep=lora_rank_lr", "~space.finetune", "--cfg", "job", cwd=tmp_path)
    assert "    lr:\n" in shown.stdout
    assert "    r:\n" not in shown.stdout, "an axis can be left out"
    shown = lrsweep_here("+sweep=full_lr", "optimizer.eps=1e-6", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0
    assert "mode: full" in shown.stdout
    assert "eps: 1.0e-06" in shown.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "report", "ui", "doctor"])
def test_each_command_has_help(tmp_path: Path, command: str) -> None:
    answer = lrsweep_here(command, "--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert f"usage: lrsweep {command}" in answer.stdout


def test_version(tmp_path: Path) -> None:
    from lrsweep import __version__

    assert lrsweep("--version", cwd=tmp_path).stdout == f"lrsweep {__version__}\n"


def test_doctor_says_what_will_be_used_and_why(tmp_path: Path) -> None:
    said = lrsweep("doctor", cwd=tmp_path).stdout
    for word in ("will use", "model.dtype", "torch 2", "mlflow.db", "engine"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.xdist_group("finished_sweep")
def test_export_to_transformers_is_read_by_its_own_parser(finished_sweep: FinishedSweep, tmp_path: Path) -> None:
    out = tmp_path / "args.yaml"
    exported = lrsweep_here("export", "lora_lr", "--to", "transformers", "--out", str(out), cwd=finished_sweep.folder)
    assert exported.returncode == 0, exported.stderr
    from transformers import HfArgumentParser, TrainingArguments

    text = out.read_text()
    assert "the sweep lora_lr" in text.replace("lrsweep sweep", "sweep")
    assert "effective batch of 8 rows" in text
    (parsed,) = HfArgumentParser(TrainingArguments).parse_yaml_file(str(out))
    assert parsed.learning_rate == 3e-3
    assert (parsed.adam_beta1, parsed.adam_beta2, parsed.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert parsed.lr_scheduler_type == "cosine"
    assert parsed.warmup_steps == 0.1
    assert parsed.per_device_train_batch_size == 8
    assert parsed.logging_nan_inf_filter is False


@pytest.mark.xdist_group("finished_sweep")
def test_export_to_hydra_composes_to_the_winning_trial(
    finished_sweep: FinishedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    out = tmp_path / "sweeps" / "best.yaml"
    exported = lrsweep_here("export", "lora_lr", "--to", "hydra", "--out", str(out), cwd=finished_sweep.folder)
    assert exported.returncode == 0, exported.stderr
    from lrsweep.config.hydra_compose import sweep_config
    from lrsweep.files.paths import existing_sweep
    from lrsweep.report.summary import read_summary

    monkeypatch.chdir(finished_sweep.folder)
    best = read_summary(existing_sweep("lora_lr")).verdict.best
    assert best is not None
    monkeypatch.chdir(tmp_path)
    composed = sweep_config(["+sweep=best"])
    for section in ("model", "data", "finetune", "optimizer", "scheduler", "training"):
        assert getattr(composed, section) == getattr(best.config, section)


@pytest.mark.xdist_group("finished_sweep")
def test_export_refuses_what_it_cannot_say(finished_sweep: FinishedSweep) -> None:
    refused = lrsweep_here("export", "lora_lr", "--to", "tensorflow", cwd=finished_sweep.folder)
    assert refused.returncode == 2
    assert refused.stderr == f"lrsweep: --to tensorflow: no such format (choices: {', '.join(DIALECTS)})\n"


def test_help_answers_without_the_heavy_libraries(tmp_path: Path) -> None:
    """Speed itself is not asserted here (benchmarks/startup.py has the figure); this is its cause."""
    script = (
        "import sys; from lrsweep.cli.main import run\n"
        "try: run(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'mlflow', 'optuna', 'datasets') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("[]\n")


def test_the_working_folder_is_not_on_the_path(tmp_path: Path) -> None:
    for name in ("random", "tokenize", "json", "numpy", "yaml", "hydra"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the working folder was imported')")
    # The second is refused by a worker.
    for override, rule in (
        ("optimizer.lr=0", "optimizer.lr=0: "),
        ("data.path=./nowhere", "data.path=./nowhere: no such"),
    ):
        ended = lrsweep_here("+sweep=lora_lr", override, cwd=tmp_path)
        assert ended.stderr.startswith(f"lrsweep: {rule}"), ended.stderr
