"""A trainer's command line as a config file and a command: launchers, variables, own scripts, values as they are."""

from pathlib import Path
from typing import Any

import pytest

from lrsweep.dialects import TRAINERS, command_line, their_command
from lrsweep.dialects.imported_run import Request
from lrsweep.dialects.importer import imported
from lrsweep.errors import InputError

OPTIONS = ["--model_name_or_path", "m", "--dataset_name", "d", "--max_steps", "9"]
TREE = {"model_name_or_path": "m", "dataset_name": "d", "max_steps": 9}


@pytest.mark.parametrize(
    ("line", "how", "command"),
    [
        (["trl", "dpo", *OPTIONS], "--config {config}", "trl dpo --config {config}"),
        (["python", "my sft.py", *OPTIONS], "--config {config}", "python 'my sft.py' --config {config}"),
        (["llamafactory-cli", "train", *OPTIONS], "{config}", "llamafactory-cli train {config}"),
        (
            ["A=1", "B=x y", "swift", "sft", *OPTIONS],
            "{config}",
            "env A=1 'B=x y' swift sft {config}",
        ),
        (["env", "A=1", "trl", "sft", *OPTIONS], "--config {config}", "env A=1 trl sft --config {config}"),
    ],
)
def test_a_line_becomes_a_file_and_a_command(line: list[str], how: str, command: str) -> None:
    tree, found, _ = command_line.parsed(line, how)
    assert (tree, found) == (TREE, command)


LAUNCHED = [
    ["accelerate", "launch", "--num_processes", "2", "trl/scripts/sft.py", *OPTIONS],
    ["python", "-m", "trl.scripts.sft", *OPTIONS],
    ["torchrun", "--nproc_per_node=2", "sft.py", *OPTIONS],
    ["A=1", "deepspeed", "--num_gpus", "2", "sft.py", *OPTIONS],
]


@pytest.mark.parametrize("line", LAUNCHED)
def test_a_launcher_needs_the_command_of_the_trials(line: list[str]) -> None:
    with pytest.raises(InputError, match=r"its own options cannot be told from the trainer's; .* --command '") as fault:
        command_line.parsed(line)
    assert "\n" not in str(fault.value)
    mine = "accelerate launch sft.py --config {config}"
    assert command_line.parsed(line, "{config}", mine)[:2] == (TREE, mine)


@pytest.mark.parametrize("value", ["a#b", "a # b", "one\ntwo", "#", "yes: no", "'x", "- a", "null "])
def test_a_text_stays_as_it_is(value: str) -> None:
    tree, _, _ = command_line.parsed(["trl", "sft", "--run_name", value])
    assert tree["run_name"] == (None if value == "null " else value)
    assert command_line.parsed(["trl", "sft", f"--run_name={value}"])[0] == tree


@pytest.mark.parametrize(
    ("dialect", "tree"),
    [
        ("trl", TREE),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "d", "template": "qwen"}),
        ("axolotl", {"base_model": "m", "datasets": [{"path": "d", "type": "completion"}], "learning_rate": 1e-4}),
        ("ms-swift", {"model": "./m", "dataset": "d.jsonl", "template_backend": "jinja", "max_length": 9}),
        ("transformers", {"learning_rate": 1e-4, "max_steps": 9}),
    ],
)
def test_ones_own_script_is_never_taken_for_the_trainers(dialect: str, tree: dict[str, Any]) -> None:
    run = imported(dialect, tree, "f.yaml", Request(command="python dpo.py {config}"))
    assert run.config.engine.name == "external"
    assert run.reasons
    script = TRAINERS[dialect].their_run(tree, "python dpo.py {config}").method
    assert script == "your own script"


@pytest.mark.parametrize(("command", "said"), [(" ", "--command: empty"), ("a 'b", "--command .*no closing quotation")])
def test_a_command_without_words_is_told(command: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        imported("trl", TREE, "f.yaml", Request("theirs", command))
    with pytest.raises(InputError, match=f"^{said}"):
        their_command.program(command, None)


def test_a_program_is_looked_up_beside_its_python_first(tmp_path: Path) -> None:
    for name in ("python", "trainer"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert their_command.program("trainer {config}", str(tmp_path / "python")) == str(tmp_path / "trainer")
    assert their_command.program("sh -c x", str(tmp_path / "python")) == their_command.program("sh", None)
    assert their_command.program("trainer", None) is None
