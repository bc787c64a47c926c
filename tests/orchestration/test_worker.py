"""A worker as the engine's host: what it answers while a stop is asked for, and what becomes of the trials."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.files import checkpoint
from lrsweep.files.paths import SweepFolder
from lrsweep.orchestration.executors.worker_pool import WorkerPool, WorkerResult
from lrsweep.orchestration.liveness import Liveness, new_worker_name
from lrsweep.orchestration.worker import Worker
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.refine import pause_at
from lrsweep.search.study_lifecycle import join_study, open_study
from lrsweep.search.sync_halving import EvalReport
from lrsweep.training.engines import Measurement, Outcome

SEARCH = sweep_config(
    [
        "+sweep=lora_lr",
        "search=random",
        "search.n_trials=6",
        "space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}",
    ]
)

Join = Callable[..., Worker]


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Join:
    """Another worker on the one sweep."""
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(SEARCH.name)
    folder.create()

    def joined(config: SweepConfig = SEARCH) -> Worker:
        open_study(config, search_space.axes(config), folder.path, "data")
        liveness = Liveness(folder.path, new_worker_name())
        study = join_study(config, search_space.axes(config), folder.path, "data", liveness)
        return Worker(config, folder, study, threading.Event())

    return joined


def controller(worker: Worker) -> ControllerStudy:
    """The controller's view of a worker's study."""
    return ControllerStudy(worker.study._store)


def evals(*losses: float) -> list[Measurement]:
    return [Measurement(number, 20, {"eval_loss": loss}) for number, loss in enumerate(losses)]


def test_a_stop_pauses_all_but_what_the_pruner_has_ended(join: Join) -> None:
    worker = join()
    for _ in range(3):
        worker.next_trial()
    worker.stop.set()
    assert worker.report(evals(1.0, 2.0, 3.0)) == {0: "paused", 1: "paused", 2: "pruned"}
    for number in range(3):
        worker.finish(Outcome(number, 20, "stopped"))
    assert [(record.number, record.status) for record in controller(worker).records()] == [(2, "pruned")]
    again = join()
    assert [again.next_trial().number for _ in range(2)] == [0, 1]  # type: ignore[union-attr]


def test_what_was_pruned_stays_pruned_when_a_stop_comes_before_its_end(join: Join) -> None:
    worker = join()
    for _ in range(3):
        worker.next_trial()
    assert worker.report(evals(1.0, 2.0, 3.0)) == {2: "pruned"}
    worker.stop.set()
    for number in (2, 0, 1):
        worker.report([])
        worker.finish(Outcome(number, 20, "stopped"))
    assert [(record.number, record.status) for record in controller(worker).records()] == [(2, "pruned")]


def test_a_stop_pauses_trials_that_have_measured_nothing(join: Join) -> None:
    worker = join()
    worker.next_trial()
    assert worker.report([]) == {}
    worker.stop.set()
    assert worker.report([]) == {0: "paused"}
    worker.finish(Outcome(0, 0, "stopped"))
    assert worker.next_trial() is None
    assert controller(worker).records() == []


def test_a_trial_that_was_left_at_the_checkpoint_of_its_pause_pauses(join: Join) -> None:
    """It must not train on before the search has decided."""
    refining = sweep_config(["+sweep=lora_lr", "space.optimizer.lr=[1e-4,1e-3]", "search=refine"])
    worker = join(refining)
    trials = [worker.next_trial() for _ in range(2)]
    pause = pause_at(refining)
    assert pause is not None
    worker.study.report([EvalReport(0, pause, 40, 4, 1.0)])
    for trial, step in zip(trials, (pause, pause - 1), strict=True):
        assert trial is not None
        checkpoint.save(trial.folder, checkpoint.Checkpoint("packed", "", step, {}))
        worker.study.release(trial.number)
    again = join(refining)
    claimed = again.next_trial()
    assert claimed is not None
    assert claimed.number == 1
    assert [record.number for record in controller(again).paused()] == [0]


def test_a_stop_past_the_pause_but_before_its_evaluation_does_not_pause_for_the_search(join: Join) -> None:
    """Without an evaluation, the search would take the rate for one that has diverged."""
    refining = sweep_config(["+sweep=lora_lr", "space.optimizer.lr=[1e-4,1e-3]", "search=refine"])
    worker = join(refining)
    trial = worker.next_trial()
    pause = pause_at(refining)
    assert trial is not None
    assert pause is not None
    worker.stop.set()
    assert worker.report([]) == {0: "paused"}
    checkpoint.save(trial.folder, checkpoint.Checkpoint("packed", "", pause + 1, {}))
    worker.finish(Outcome(0, pause + 1, "stopped"))
    assert controller(worker).paused() == []
    again = join(refining).next_trial()
    assert again is not None
    assert again.number == 0


class Nameless:
    """A worker that has died before anybody learnt its name."""

    name = ""

    def start(self) -> None: ...

    def running(self) -> bool:
        return False

    def news(self) -> list[str]:
        return []

    def result(self) -> WorkerResult:
        return WorkerResult("memory ran out")

    def send(self, signum: signal.Signals) -> None: ...

    def close(self) -> None: ...


class Nobody(WorkerPool):
    def _spawn(self, index: int) -> Nameless:
        return Nameless()


def test_a_death_without_a_name_blames_no_trial(join: Join) -> None:
    worker = join()
    worker.next_trial()
    worker.stop.set()
    worker.report([])
    worker.finish(Outcome(0, 0, "stopped"))
    pool = Nobody(1)
    pool.start(controller(worker))
    for _ in range(2):
        assert pool.replace_dead() == ["a worker died: memory ran out; started another"]
    assert controller(worker).records() == []
    again = join()
    assert [again.next_trial().number for _ in range(2)] == [0, 1]  # type: ignore[union-attr]
