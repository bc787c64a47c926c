"""`make gpu`: its gates close, what fails is reduced, and what dies or hangs costs its own step only."""

import os
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from gpu import speed  # noqa: E402
from gpu.correctness import CHECKS, Case, cases, checked  # noqa: E402
from gpu.models import LARGE, SMALL  # noqa: E402
from gpu.report import targets  # noqa: E402
from gpu.steps import supervise  # noqa: E402

from lrsweep.training.packing import train_pass  # noqa: E402

TINY = Case(steps=5, layers=1, rows=2, tokens=16, shortest=3, hidden=32)


@pytest.mark.parametrize("check", ["stock", "NaN", "checkpoints"])
def test_packed_trials_pass_the_check(check: str) -> None:
    assert checked(check, TINY)["ok"] is True


def test_a_wrong_gradient_breaks_the_gate_and_the_smallest_case_is_told(monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(pack: Any, start: int, stop: int, *rest: Any) -> torch.Tensor:
        losses = train_pass(pack, start, stop, *rest)
        if stop > 1:
            pack.arena.grads[1].mul_(-1)
        return losses

    monkeypatch.setattr("gpu.correctness.train_pass", wrong)
    monkeypatch.setattr("gpu.correctness.REDUCING_SECONDS", 600)
    found = checked("stock", TINY)
    assert found["ok"] is False
    # One trial is right, and the first loss; so are two steps on one row.
    assert re.search(r"--reproduce 'stock' '\{\"trials\": 2, \"steps\": 2, ", found["reproduce"]), found


def test_an_error_is_reduced_to_the_smallest_case_with_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_two_layers(case: Case) -> dict[str, Any]:
        if case.rows == 1:
            raise KeyError("another")
        if case.layers >= 2:
            raise IndexError("of two layers")
        return {"ok": True}

    monkeypatch.setitem(CHECKS, "broken", needs_two_layers)
    found = checked("broken", Case())
    assert found["failed"] == "IndexError: of two layers"
    smallest = '{"trials": 1, "steps": 1, "layers": 2, "rows": 2, "tokens": 8, "shortest": 2}'
    assert found["reproduce"] == f"python benchmarks/gpu_check.py --reproduce 'broken' '{smallest}'"


CHILD = """
import os, signal, time
from gpu.steps import Step, arguments_of_child, run_steps

def broken():
    raise ValueError("a bad day")

arguments = arguments_of_child()
run_steps([
    Step("first", 9, lambda: {"ok": True}),
    Step("crashes", 9, lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    Step("raises", 9, broken),
    Step("hangs", 0.4, lambda: time.sleep(600)),
    Step("has no time", 9, broken, guess=1e9),
    Step("last", 9, lambda: {"ok": True, "n": 1}),
], arguments)
"""


def run_child(folder: Path, text: str, seconds: float) -> list[dict[str, Any]]:
    (folder / "child.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, str(folder / "child.py")]
    return list(supervise(command, folder / "part.jsonl", time.monotonic() + seconds, env))


def test_what_dies_or_hangs_costs_its_own_step_only(tmp_path: Path) -> None:
    found = run_child(tmp_path, CHILD, 300)
    assert [(event["end"], event["ok"]) for event in found] == [
        ("first", True),
        ("crashes", False),
        ("raises", False),
        ("hangs", False),
        ("has no time", None),
        ("last", True),
    ]
    assert [event["failed"] for event in found if "failed" in event] == [
        "died: killed by SIGSEGV",
        "ValueError: a bad day",
        "killed after its limit of 0.4 s",
    ]


def test_a_part_that_cannot_begin_is_told_once(tmp_path: Path) -> None:
    (found,) = run_child(tmp_path, "import no_such_module", 60)
    assert found["ok"] is False
    assert found["failed"].startswith("died: exit code 1; see ")
    assert "no_such_module" in (tmp_path / "part.log").read_text()


def test_a_part_ends_when_its_time_is_up(tmp_path: Path) -> None:
    (found,) = run_child(tmp_path, CHILD.replace('lambda: {"ok": True}', "lambda: time.sleep(600)", 1), 5)
    assert (found["end"], found["ok"], found["failed"]) == ("first", None, "cut off: no time was left")


@pytest.mark.parametrize("smoke", [False, True])
def test_steps_have_names_of_their_own(smoke: bool) -> None:
    for names in (
        [name for name, _, _ in cases(smoke)],
        [str(c) for c in (*speed.plan(smoke, False), *speed.plan(smoke, True))],
    ):
        assert len(set(names)) == len(names)


def test_a_process_of_several_that_dies_is_noticed_at_once() -> None:
    class Dead:
        exitcode = -11

        def kill(self) -> None: ...

    class Silent:
        def get(self, timeout: float) -> Any:
            import queue

            raise queue.Empty

    with pytest.raises(RuntimeError, match="exit code -11"):
        speed._answers([Dead()], Silent())


def test_targets_are_told_as_met_or_not() -> None:
    def cell(model: str, batch: int, arm: str, ms: float) -> dict[str, Any]:
        shares = {"share_of_peak_done": 0.4, "share_of_peak": 0.51}
        return {"ok": None, "model": model, "batch": batch, "arm": arm, "ms_per_trial_step": ms, **shares}

    entries = [cell(SMALL, 1, "Trainer", 27), cell(SMALL, 1, "packed", 6), cell(SMALL, 1, "packed", 3)]
    entries += [cell(SMALL, 1, "tuned Trainer", 10), cell(LARGE, 8, "Trainer", 100), cell(LARGE, 8, "packed", 101)]
    told = "\n".join(targets([*entries, cell(SMALL, 8, "packed", 9)]))
    assert re.findall(r": ([\d.]+)(?: times|%).*: (met|NOT MET)", told) == [
        ("9.00", "met"),
        ("3.33", "NOT MET"),
        ("0.99", "met"),
        ("40.0", "NOT MET"),
    ]


def test_the_wheels_are_all_that_a_bare_image_lacks() -> None:
    script = (ROOT / "benchmarks" / "gpu" / "wheels.sh").read_text()
    groups = {name: text.split() for name, text in re.findall(r'^(core|mlflow)="([^"]*)"', script, re.MULTILINE)}
    fetched = {name.lower().replace("_", "-") for names in groups.values() for name in names}
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert fetched <= {name.lower().replace("_", "-") for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[><=!]", line)[0] for line in project["dependencies"]}
    # torch, transformers, peft, and what they need themselves.
    there = {"torch", "transformers", "peft", "accelerate", "numpy", "psutil", "pyyaml", "safetensors", "tokenizers"}
    assert needed - there <= fetched
