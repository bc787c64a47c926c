"""The user's own trainer as the engine: real processes, real training, read live, ended as a group."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.dialects import TRAINERS, tree
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.training.engines import Trial
from lrsweep.training.engines.external import ExternalEngine
from lrsweep.training.engines.left_over import end_left_over
from lrsweep.training.engines.trainer import TrainerEngine
from tests.conftest import lrsweep, lrsweep_here
from tests.recorder import TINY, Recorder, tiny, train

ROOT = Path(__file__).parents[3]
SCRIPT = f"{sys.executable} -m tests.a_trainer {{config}}"


def text(trial: Trial, output: Path) -> str:
    written = tree(TRAINERS["transformers"], trial.config, {"optimizer.lr"})
    return to_yaml({**written, "output_dir": str(output.resolve()), "logging_steps": 1, "save_strategy": "no"})


def engine(options: str = "", at_once: int = 2) -> ExternalEngine:
    return ExternalEngine(SCRIPT + options, text, at_once, [])


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_its_curve_is_the_trainers_own(tmp_path: Path) -> None:
    trials = [tiny(), tiny("optimizer.lr=1e-2")]
    host = train(engine(), tmp_path / "external", *trials)
    assert {(o.number, o.status, o.step) for o in host.outcomes} == {(0, "complete", 6), (1, "complete", 6)}
    stock = train(TrainerEngine(), tmp_path / "own", *trials)
    for number in (0, 1):
        for name in ("loss", "learning_rate"):
            assert host.curve(name, number) == pytest.approx(stock.curve(name, number), abs=2e-4)
        assert sorted(host.curve("eval_loss", number)) == [3, 6]
    assert "output_dir" in (tmp_path / "external" / "0" / "trainer.yaml").read_text()


def test_a_failure_is_told_with_its_last_line(tmp_path: Path) -> None:
    host = train(engine(" --fail-above 5e-3"), tmp_path, tiny("optimizer.lr=1e-2"), tiny())
    failed = next(outcome for outcome in host.outcomes if outcome.number == 0)
    assert failed.status == "failed"
    assert failed.reason.startswith("the command ended with 1: ValueError: that rate is too high for me; see ")
    assert next(outcome for outcome in host.outcomes if outcome.number == 1).status == "complete"
    missing = ExternalEngine("/no/such/program {config}", text, 1, [])
    assert "No such file" in train(missing, tmp_path / "b", tiny()).outcomes[0].reason


def test_one_that_is_stopped_ends_with_all_its_children(tmp_path: Path) -> None:
    shell = ExternalEngine(f"sh -c '{SCRIPT} --sleep 0.5; echo never'", text, 1, [])
    host = train(shell, tmp_path, tiny("training.max_steps=200"), stop_at=3)
    assert [(o.status, o.step >= 3) for o in host.outcomes] == [("stopped", True)]
    assert max(host.curve("loss")) < 20
    assert running(tmp_path) == []


def running(folder: Path) -> list[list[str]]:
    """The command lines of what runs with a file in that folder."""
    return [
        words
        for words in (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
        if any(str(folder) in word for word in words)
    ]


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    )
    program = (
        "import pathlib, subprocess, sys, time, json; subprocess.Popen([sys.executable, sys.argv[1]]); time.sleep(1); "
        "out = pathlib.Path(sys.argv[3]); "
        "(out / 'trainer_log.jsonl').write_text(json.dumps({'current_steps': 6, 'eval_loss': 1.0}))"
    )
    (tmp_path / "p.py").write_text(program)
    command = f"{sys.executable} {tmp_path / 'p.py'} {tmp_path / 'child.py'} {{config}} {{output}}"
    host = train(ExternalEngine(command, text, 1, []), tmp_path, tiny())
    assert [outcome.status for outcome in host.outcomes] == ["complete"]
    assert running(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["output.log", "run", "trainer.yaml"]


def left_running(folder: Path) -> "subprocess.Popen[bytes]":
    """What a killed worker leaves: a trial's command, which has started another process, out of its session."""
    child = "import time; time.sleep(99)"
    parent = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]], start_new_session=True)"
    )
    command = [sys.executable, "-c", parent, str(folder / "trainer.yaml")]
    process = subprocess.Popen(command, env={**os.environ, "LRSWEEP_TRIAL": str(folder)}, start_new_session=True)
    while len(running(folder)) < 2:
        time.sleep(0.05)
    return process


def test_what_a_killed_sweep_left_running_ends_before_the_trial_starts_anew(tmp_path: Path) -> None:
    left = left_running(tmp_path / "0")
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(99)", str(tmp_path / "0" / "trainer.yaml")]
    )
    train(ExternalEngine("true {config}", text, 1, []), tmp_path, tiny(), tiny())
    assert len(running(tmp_path / "0")) == 1
    left.wait(10)
    assert other.poll() is None, "not the trial's: somebody looks at its config"
    other.kill()
    other.wait()


def test_all_that_a_sweep_left_running_ends(tmp_path: Path) -> None:
    left = [left_running(tmp_path / "sweep" / "trials" / name) for name in ("0003", "0004")]
    beside = left_running(tmp_path / "sweep2" / "trials" / "0000")
    end_left_over(tmp_path / "sweep")
    assert running(tmp_path / "sweep" / "trials") == []
    assert len(running(tmp_path)) == 2
    end_left_over(tmp_path / "sweep2")
    assert running(tmp_path) == []
    for process in (*left, beside):
        process.wait(10)


def test_a_signal_that_the_command_gets_too_is_no_failure(tmp_path: Path) -> None:
    """A service manager signals every process of the service; the worker's own word may come a moment later."""
    program = "import os, sys, time; time.sleep(0.5); os.kill(os.getpid(), 15)"
    command = f"{sys.executable} -c '{program}' {{config}}"

    class Host(Recorder):
        dead = False

        def report(self, measurements: Any) -> Any:
            super().report(measurements)
            before, self.dead = self.dead, running(tmp_path) == []
            return {0: "paused"} if before else {}

    host = Host(tmp_path, [tiny()])
    ExternalEngine(command, text, 1, []).run(host)
    assert [outcome.status for outcome in host.outcomes] == ["stopped"]
    (alone,) = train(ExternalEngine(command, text, 1, []), tmp_path, tiny()).outcomes
    assert (alone.status, alone.reason.split(";")[0]) == ("failed", "the command was killed by SIGTERM")


def test_signals_reach_no_process_that_took_over_the_commands_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that has ended keeps its process id until it has had its last signal."""
    killpg = os.killpg
    sent: list[tuple[int, bool]] = []

    def watched(group: int, signum: int) -> None:
        sent.append((signum, psutil.pid_exists(group)))
        killpg(group, signum)

    monkeypatch.setattr(os, "killpg", watched)
    host = train(engine(" --fail-above 5e-3"), tmp_path, tiny("optimizer.lr=1e-2"))
    assert host.outcomes[0].status == "failed", "it ends by itself"
    assert sent, "what the command may have left in its group is ended"
    assert all(still_ours for _, still_ours in sent), sent
    monkeypatch.undo()
    # It is not left a zombie either.
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_gpus_are_handed_out(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, time, json, sys; out = pathlib.Path(sys.argv[1]); time.sleep(1); "
        "(out / 'gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES']); "
        "(out / 'trainer_log.jsonl').write_text(json.dumps({'current_steps': 6, 'eval_loss': 1.0}))"
    )
    (tmp_path / "p.py").write_text(program)
    shared = ExternalEngine(f"{sys.executable} {tmp_path / 'p.py'} {{output}} {{config}}", text, 2, ["0", "3"])
    host = Recorder(tmp_path, [tiny(), tiny(), tiny()])
    shared.run(host)
    seen = [(tmp_path / str(i) / "run" / "gpu").read_text() for i in range(3)]
    assert sorted(seen[:2]) == ["0", "3"]
    assert seen[2] in ("0", "3")
    alone = ExternalEngine(f"{sys.executable} {tmp_path / 'p.py'} {{output}} {{config}}", text, 1, ["0", "3"])
    alone.run(Recorder(tmp_path / "alone", [tiny()]))
    assert (tmp_path / "alone" / "0" / "run" / "gpu").read_text() == "0,3"


def test_a_whole_sweep_by_the_users_command(tmp_path: Path) -> None:
    overrides = [
        f"engine.command='{SCRIPT}'",
        "engine=external",
        "engine.dialect=transformers",
        "space.optimizer.lr=[1e-4,3e-3]",
    ]
    run = lrsweep(
        *TINY[:4], "optimizer.lr=1e-3", *overrides, "tracking=none", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "outputs" / "lora_lr" / "summary.json").read_text())
    assert summary["best"]["values"] == {"optimizer.lr": 3e-3}
    assert [trial["status"] for trial in summary["trials"]] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.command=train", "engine.dialect=trl"], "engine.command='train': has no {config}"),
        (["engine.command='train {config}'", "engine.dialect=fairseq"], "engine.dialect='fairseq': no such dialect"),
        (["engine.dialect=trl"], "engine.command: missing"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, overrides: list[str], said: str) -> None:
    run = lrsweep_here("+sweep=lora_lr", "engine=external", *overrides, cwd=tmp_path)
    assert run.returncode == 2
    assert said in run.stderr
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_another_command_is_another_sweep() -> None:
    from lrsweep.search.study_lifecycle import identity

    one, other = (
        sweep_config(["+sweep=lora_lr", "engine=external", f"engine.command='{name} {{config}}'", "engine.dialect=trl"])
        for name in ("a", "b")
    )
    assert identity(one, "") != identity(other, "")


LOG = """
import json, sys
with open(sys.argv[1], "w") as log:
    for step, reward in enumerate([1.0, 3.0, 5.0, 7.0, 9.0, 11.0], start=1):
        log.write(json.dumps({"current_steps": step, "reward": reward, "loss": 1.0}) + chr(10))
"""


def test_a_number_of_training_steps_is_smoothed_where_an_evaluation_would_be(tmp_path: Path) -> None:
    (tmp_path / "log.py").write_text(LOG)
    command = f"{sys.executable} {tmp_path / 'log.py'} {{output}}/trainer_log.jsonl {{config}}"
    rewarded = ExternalEngine(command, text, 1, [], None, ("reward", "smoothed_reward"))
    host = train(rewarded, tmp_path / "trials", tiny("training.eval_every=2"))
    assert host.curve("smoothed_reward", 0) == {2: 2.0, 4: 6.0, 6: 10.0}
    assert host.outcomes[0].status == "complete"
    lossless = train(ExternalEngine(command, text, 1, []), tmp_path / "more", tiny()).outcomes[0]
    assert (lossless.status, lossless.reason[:21]) == ("failed", "it wrote no eval_loss")


def test_the_command_is_found_beside_the_given_python(tmp_path: Path) -> None:
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "my-trainer").write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "log.py"} "$@"\n')
    (folder / "my-trainer").chmod(0o755)
    (tmp_path / "log.py").write_text(LOG)
    command = "my-trainer {output}/trainer_log.jsonl {config}"
    found = ExternalEngine(command, text, 1, [], str(folder / "python"), ("loss", "smoothed_loss"))
    assert train(found, tmp_path / "trials", tiny()).outcomes[0].status == "complete"
    missing = ExternalEngine(command, text, 1, [], None, ("loss", "smoothed_loss"))
    assert train(missing, tmp_path / "more", tiny()).outcomes[0].status == "failed"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_command_ends_with_its_worker_even_if_that_is_killed(tmp_path: Path, hidden: bool) -> None:
    """Nobody else is there to end it, and it may have hidden its environment, as its child has."""
    sleep = "import time; time.sleep(99)"
    run = f"subprocess.run([sys.executable, '-c', {sleep!r}, {str(tmp_path)!r}], start_new_session=True)"
    again = "os.environ.get('LRSWEEP_TRIAL') and os.execve(sys.executable, [sys.executable, *sys.argv], {})"
    (tmp_path / "trainer.py").write_text(f"import os, subprocess, sys\n{again if hidden else ''}\n{run}\n")
    command = f"{sys.executable} {tmp_path / 'trainer.py'} {{config}}"
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.training.engines.external_worker", command, str(tmp_path / "trials")]
    )
    until = time.monotonic() + 60
    while len(running(tmp_path)) < 3 and time.monotonic() < until:  # the worker, the trainer and its child
        time.sleep(0.05)
    assert len(running(tmp_path)) == 3
    worker.kill()
    worker.wait()
    until = time.monotonic() + 10
    while running(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert running(tmp_path) == []
