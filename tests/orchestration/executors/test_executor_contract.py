"""What every executor in EXECUTORS has to do."""

import signal
from pathlib import Path

import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.orchestration.executors.factory import EXECUTORS
from tests.orchestration.executors.sweeps import check_complete, grid, start

# Those that need a cluster's stand-ins take longer.
OPTIONS = {"slurm": ["executor.cluster=local"], "ray": ["executor.workers=2"]}
MARKS = {"slurm": pytest.mark.scale, "ray": pytest.mark.scale, "inline": pytest.mark.thorough}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS[name]) if name in MARKS else name for name in EXECUTORS]
)
def test_an_interrupted_sweep_is_resumed_to_its_end(name: str, tmp_path: Path) -> None:
    if name == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'lrsweep[ray]'")
    command = [*grid(0.05), f"executor={name}", *OPTIONS.get(name, [])]
    sweep = start(tmp_path, *command)
    sweep.wait_for_trials(4)
    sweep.process.send_signal(signal.SIGINT)
    code, output = sweep.wait()
    assert code == 130, output
    assert "resume with: lrsweep" in output
    code, output = start(tmp_path, *command).wait()
    assert code == 0, output
    check_complete(tmp_path)


@pytest.mark.parametrize("name", EXECUTORS)
def test_it_can_be_chosen_by_name(name: str) -> None:
    assert sweep_config(["+sweep=lora_lr", f"executor={name}"]).executor.name == name
