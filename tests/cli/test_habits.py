"""list, new, help and completion: what a newcomer tries first."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrsweep.cli import list_sweeps, main, new
from lrsweep.cli.completion import candidates
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.search_method import settle
from lrsweep.errors import InputError
from lrsweep.files.paths import SweepFolder


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_sweep(name: str, trials: int, best: float | None) -> SweepFolder:
    folder = SweepFolder(name)
    folder.create()
    folder.config.write_text(f"name: {name}\n")
    shown = None if best is None else {"values": {"optimizer.lr": best}, "eval_loss": 2.5}
    folder.summary.write_text(json.dumps({"trials": [{}] * trials, "best": shown}))
    return folder


def test_list_says_the_state_and_the_best_of_each_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    list_sweeps.run([])
    assert "no sweeps in outputs/ yet" in capsys.readouterr().out
    a_sweep("done", 3, 1e-4).conclude(3)
    a_sweep("lost", 2, None).conclude(2)
    a_sweep("half", 1, 3e-4)
    a_sweep("broken", 1, 3e-4).summary.write_text("[")
    with a_sweep("busy", 0, None).locked():
        list_sweeps.run(["--json"])
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    states = {name: entry["state"] for name, entry in found.items()}
    assert states == {
        "done": "complete",
        "lost": "failed",
        "half": "interrupted",
        "broken": "interrupted",
        "busy": "running",
    }
    list_sweeps.run([])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("done"))
    assert "optimizer.lr=0.0001  2.5000" in line


@pytest.mark.parametrize("name", ["mine", "v1.5", "a-b_c"])
def test_new_writes_a_sweep_that_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    new.run([name])
    assert f"lrsweep +sweep={name}" in capsys.readouterr().out
    config = sweep_config([f"+sweep={name}"])
    assert config.name == name
    assert [axis.key for axis in search_space.axes(settle(config)[0])] == ["optimizer.lr"]


@pytest.mark.parametrize(
    "summary", ['{"trials": 5}', '{"best": [1]}', '{"best": {"values": 1, "value": "x"}}', "[1]", "[" * 99_999, "\xff"]
)
def test_a_damaged_summary_does_not_hide_the_other_sweeps(summary: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "damaged"):
        folder = Path("outputs", name)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("name: x\n")
        whole = '{"trials": [], "best": {"values": {}, "value": 1.5}}'
        (folder / "summary.json").write_text(summary if name == "damaged" else whole)
    assert list_sweeps.run([]) == 0
    shown = capsys.readouterr().out
    assert "1.5000" in shown
    assert "damaged" in shown


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine", "sweeps/mine.yaml: exists already"),
        ("lora_lr", "has a sweep of that name"),
        ("../x", "letters"),
        ("123", "starts"),
        ("null", "starts"),
    ],
)
def test_new_overwrites_nothing(name: str, said: str) -> None:
    Path("sweeps").mkdir()
    Path("sweeps/mine.yaml").write_text("")
    with pytest.raises(InputError, match=said):
        new.run([name])
    assert Path("sweeps/mine.yaml").read_text() == ""


def test_help_is_a_commands_own_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.run(["help", "export"])
    assert "usage: lrsweep export" in capsys.readouterr().out
    with pytest.raises(InputError, match="'nothing'"):
        main.run(["help", "nothing"])


def test_completion_knows_commands_sweeps_groups_and_keys() -> None:
    a_sweep("mine", 1, 1e-4)
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/tiny.yaml").write_text("path: ./tiny\n")
    assert candidates([], "rep") == ["report"]
    assert candidates([], "+sweep=adam") == ["+sweep=adamw", "+sweep=adamw_tpe"]
    assert candidates(["+sweep=lora_lr"], "rep") == []
    assert candidates(["+sweep=lora_lr"], "optimizer.be") == ["optimizer.betas="]
    assert candidates(["+sweep=lora_lr"], "space.optimizer.l") == ["space.optimizer.lr=", "space.optimizer.lr_groups="]
    assert candidates([], "space.search") == [], "a key that no trial depends on cannot be searched"
    assert "model=tiny" in candidates([], "model=")
    assert candidates(["report"], "") == ["mine"]
    assert "trl" in candidates(["export", "mine", "--to"], "")
    assert "hydra" not in candidates(["import"], "")
    assert candidates(["help"], "doc") == ["doctor"]


def test_help_lists_every_command_and_ones_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/tiny.yaml").write_text("path: ./tiny\n")
    new.run(["mine"])
    main.run(["--help"])
    shown = capsys.readouterr().out
    assert [command for command in main.COMMANDS if f"  lrsweep {command} " not in shown] == []
    assert "smollm2_135m, tiny\n" in shown
    assert "mine, " in shown
    assert "  weight_decay: " in shown
    assert "$" not in shown.replace("${", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_part_after_the_equals_sign() -> None:
    script = f"""
lrsweep() {{ {sys.executable} -m lrsweep "$@"; }}
source <(lrsweep completion bash)
COMP_LINE="lrsweep +sweep=lora_lr finetune=f"; COMP_POINT=${{#COMP_LINE}}; _lrsweep
echo "${{COMPREPLY[*]}}"
"""
    answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "freeze full\n", answer.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_the_completion_works_in_fish() -> None:
    script = f"""
set -x PATH {Path(sys.executable).parent} $PATH
lrsweep completion fish | source
complete -C "lrsweep +sweep=lora_lr finetune=f"
"""
    answer = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["finetune=freeze", "finetune=full"], answer.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_the_completion_works_in_zsh() -> None:
    # Outside of an editor, compadd has nowhere to put its words, so a function prints them.
    script = f"""
path=({Path(sys.executable).parent} $path)
compdef() {{ }}
compadd() {{ print -l -- "${{@[4,-1]}}" }}
source <(lrsweep completion zsh)
words=(lrsweep +sweep=lora_lr finetune=f) CURRENT=3 PREFIX=finetune=f
_lrsweep
"""
    answer = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["finetune=freeze", "finetune=full"], answer.stderr
