"""A trial that is trained by two processes: torch's launcher as the command, gloo between the ranks."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import lrsweep
from tests.recorder import TINY

ROOT = Path(__file__).parents[3]
LAUNCH = f"{Path(sys.executable).with_name('torchrun')} --nproc-per-node 2 -m tests.a_trainer {{config}}"


@pytest.mark.scale
def test_each_trial_is_two_processes(tmp_path: Path) -> None:
    words = [
        *TINY[:4],
        "optimizer.lr=1e-3",
        "engine=external",
        "engine.dialect=transformers",
        "engine.slots=1",
        f"engine.command='{LAUNCH}'",
        "space.optimizer.lr=[1e-4,3e-3]",
        "tracking=none",
    ]
    run = lrsweep(*words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "outputs" / "lora_lr" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["complete", "complete"]
    for number in ("0000", "0001"):
        folder = tmp_path / "outputs" / "lora_lr" / "trials" / number / "run"
        assert {path.name: path.read_text() for path in folder.glob("rank*")} == {"rank0": "of 2", "rank1": "of 2"}
