"""The study: grid points once, totals kept, dead trials taken up again, diverged told apart from failed."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, StorageError
from lrsweep.files.paths import SweepFolder
from lrsweep.orchestration.liveness import Liveness, new_worker_name
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.records import Record, TrialSpec
from lrsweep.search.samplers import check_search, sync_halving
from lrsweep.search.study_lifecycle import find_study, join_study, open_study, put_aside
from lrsweep.search.sync_halving import EvalReport, SyncHalving
from lrsweep.search.worker_study import WorkerStudy
from lrsweep.training.engines import Stop

LRS = [1e-5, 1e-4, 1e-3]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(*overrides: str) -> SweepConfig:
    return sweep_config(["+sweep=lora_lr", "search=grid", f"space.optimizer.lr={LRS}", *overrides])


def tpe(total: int, *overrides: str) -> SweepConfig:
    lr = "space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}"
    return sweep_config(["search=tpe", f"search.n_trials={total}", lr, *overrides])


def opened(config: SweepConfig, folder: Path, fingerprint: str = "data", first: Any = None) -> WorkerStudy:
    """The study as its controller opens it, joined by a worker of this process."""
    open_study(config, search_space.axes(config), folder, fingerprint, first)
    return join_study(config, search_space.axes(config), folder, fingerprint, Liveness(folder, new_worker_name()))


def controller(study: WorkerStudy) -> ControllerStudy:
    """The controller's view of a worker's study."""
    return ControllerStudy(study._store)


def kill(study: WorkerStudy) -> None:
    """What the kernel does for a worker that has died: its lock is gone, its trials are as they were."""
    assert isinstance(study._liveness, Liveness)
    study._liveness._lock.close()


def run(
    study: WorkerStudy, at_most: int = 1000, loss: Any = lambda params: params["optimizer.lr"]
) -> list[tuple[int, float]]:
    done: list[tuple[int, float]] = []
    while len(done) < at_most and (taken := study.next()):
        number, spec = taken
        study.tell(Record(number, spec, "complete", 10, loss(spec.params), ""))
        done.append((number, spec.params["optimizer.lr"]))
    return done


def test_a_grid_runs_each_point_once_in_order(tmp_path: Path) -> None:
    assert run(opened(config(), tmp_path)) == [(0, 1e-5), (1, 1e-4), (2, 1e-3)]
    again = opened(config(), tmp_path)
    assert controller(again).finished()
    assert again.next() is None


def test_a_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run(opened(config(), tmp_path), at_most=1)
    assert run(opened(config(), tmp_path)) == [(1, 1e-4), (2, 1e-3)]


def test_a_trial_left_running_is_taken_up_as_the_same_trial(tmp_path: Path) -> None:
    killed = opened(config(), tmp_path)
    run(killed, at_most=1)
    assert killed.next() == (1, TrialSpec({"optimizer.lr": 1e-4}))
    kill(killed)
    resumed = opened(config(), tmp_path)
    assert not controller(resumed).finished()
    assert run(resumed) == [(1, 1e-4), (2, 1e-3)]
    assert [record.number for record in controller(resumed).records()] == [0, 1, 2]


def test_a_trial_begun_anew_may_report_its_steps_again(tmp_path: Path) -> None:
    killed = opened(config(), tmp_path)
    number, _ = killed.next() or (-1, TrialSpec({}))
    killed.report([EvalReport(number, 10, 60, 6, 2.0)])
    kill(killed)
    resumed = opened(config(), tmp_path)
    number, _ = resumed.next() or (-1, TrialSpec({}))
    assert not resumed.report([EvalReport(number, 10, 60, 6, 2.0)])


def test_n_trials_is_a_total_and_may_grow(tmp_path: Path) -> None:
    assert len(run(opened(tpe(4), tmp_path))) == 4
    assert controller(opened(tpe(4), tmp_path)).finished()
    assert len(run(opened(tpe(7), tmp_path))) == 3


def test_n_trials_caps_a_grid(tmp_path: Path) -> None:
    assert len(run(opened(config("search.n_trials=2"), tmp_path))) == 2
    assert len(run(opened(config("search.n_trials=50"), tmp_path))) == 1


def test_resuming_does_not_draw_the_same_points_again(tmp_path: Path) -> None:
    first = run(opened(tpe(3), tmp_path))
    second = run(opened(tpe(6), tmp_path))
    assert len({lr for _, lr in first + second}) == 6


def test_the_same_seed_gives_the_same_sweep(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for folder in (a, b, c):
        folder.mkdir()
    assert run(opened(tpe(5), a)) == run(opened(tpe(5), b)) != run(opened(tpe(5, "search.seed=1"), c))


@pytest.mark.parametrize("method", ["random", "qmc", "gp"])
def test_other_samplers_reach_their_total(tmp_path: Path, method: str) -> None:
    lr = "space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}"
    done = run(opened(sweep_config([f"search={method}", "search.n_trials=4", lr]), tmp_path))
    assert len({value for _, value in done}) == 4


def test_a_diverged_trial_is_worst_for_the_sampler_and_kept_apart(tmp_path: Path) -> None:
    study = opened(config(), tmp_path)
    losses = [("complete", 3.0), ("diverged", None), ("failed", None)]
    for status, loss in losses:
        number, spec = study.next() or (-1, TrialSpec({}))
        if loss is not None:
            study.report([EvalReport(number, 10, 60, 6, loss)])
        study.tell(Record(number, spec, status, 10, loss, "because"))  # type: ignore[arg-type]
    assert [record.status for record in controller(study).records()] == ["complete", "diverged", "failed"]
    raw = optuna.load_study(study_name="lora_lr", storage=f"sqlite:///{tmp_path}/study.db")
    assert raw.best_trial.number == 0
    assert raw.trials[1].state == optuna.trial.TrialState.COMPLETE
    assert raw.trials[1].value is not None
    assert 3.0 < raw.trials[1].value < float("inf")
    assert raw.trials[2].state == optuna.trial.TrialState.FAIL


def test_a_pruner_stops_what_is_worse(tmp_path: Path) -> None:
    study = opened(config("pruner=median", "pruner.kwargs={n_startup_trials: 1}"), tmp_path)
    number, spec = study.next() or (-1, TrialSpec({}))
    assert not study.report([EvalReport(number, 20, 60, 6, 1.0)])
    study.tell(Record(number, spec, "complete", 20, 1.0, ""))
    number, spec = study.next() or (-1, TrialSpec({}))
    assert study.report([EvalReport(number, 20, 60, 6, 5.0)]) == {number: "pruned"}


def test_sync_halving_is_the_default_of_packed_searches_and_of_nothing_else(tmp_path: Path) -> None:
    def stopped(name: str, *overrides: str) -> dict[int, Stop]:
        folder = tmp_path / name
        folder.mkdir()
        study = opened(tpe(4, *overrides) if name != "grid" else config(), folder)
        pack = [study.next() or (-1, TrialSpec({})) for _ in range(3)]
        return study.report([EvalReport(number, 20, 60, 6, float(number)) for number, _ in pack])

    assert stopped("packed") == {2: "pruned"}
    assert stopped("trainer", "engine=trainer") == {}
    assert stopped("off", "pruner=none") == {}
    assert stopped("grid") == {}


@pytest.mark.parametrize(
    ("engine", "pruned"),
    [("auto", True), ("packed", True), ("external", True), ("trainer", False), ("a_new_engine", False)],
)
def test_only_engines_with_several_trials_at_once_are_pruned_unasked(engine: str, pruned: bool) -> None:
    """A trial that trains alone would be judged against trials that do not run beside it."""
    search = tpe(4)
    search = search.model_copy(update={"engine": search.engine.model_copy(update={"name": engine})})
    assert isinstance(sync_halving(search), SyncHalving) == pruned
    asked = search.model_copy(update={"pruner": search.pruner.model_copy(update={"name": "sync_halving"})})
    assert isinstance(sync_halving(asked), SyncHalving)


def test_a_resumed_search_remembers_its_rungs(tmp_path: Path) -> None:
    study = opened(tpe(4), tmp_path)
    for loss in (1.0, 2.0):
        number, spec = study.next() or (-1, TrialSpec({}))
        study.report([EvalReport(number, 20, 60, 6, loss)])
        study.tell(Record(number, spec, "complete", 60, loss, ""))
    resumed = opened(tpe(4), tmp_path)
    number, _ = resumed.next() or (-1, TrialSpec({}))
    assert resumed.report([EvalReport(number, 20, 60, 6, 3.0)]) == {number: "pruned"}


def test_what_follows_is_added_to_the_total_once(tmp_path: Path) -> None:
    study = opened(config(), tmp_path)
    run(study)
    controller(study).add_followups(
        [TrialSpec({"optimizer.lr": 3e-3}, "extension"), TrialSpec({"optimizer.lr": 1e-2}, "extension")]
    )
    assert controller(study).total == 5
    assert controller(study).axes[0].points() == (*LRS, 3e-3, 1e-2)
    assert run(study, at_most=1) == [(3, 3e-3)]
    # A kill after the list was written, before the queue was: the next run fills the queue.
    resumed = opened(config(), tmp_path)
    assert controller(resumed).axes == controller(study).axes
    assert not controller(resumed).finished()
    assert run(resumed) == [(4, 1e-2)]
    controller(resumed).add_followups([TrialSpec({"optimizer.lr": 1e-3}, "replicate", {"training.seed": 7}, of=2)])
    number, spec = resumed.next() or (-1, TrialSpec({}))
    assert (number, spec) == (5, TrialSpec({"optimizer.lr": 1e-3}, "replicate", {"training.seed": 7}, 2))
    resumed.tell(Record(number, spec, "complete", 10, 1.0, ""))
    assert [record.spec for record in controller(opened(config(), tmp_path)).records()][-1] == spec


def test_a_kill_between_the_list_and_the_queue_loses_nothing(tmp_path: Path) -> None:
    study = opened(config(), tmp_path)
    run(study)
    raw = optuna.load_study(study_name="lora_lr", storage=f"sqlite:///{tmp_path}/study.db")
    point = {"params": {"optimizer.lr": 3e-3}, "role": "extension", "overrides": {}, "of": None}
    raw.set_user_attr("followed", [point, {**point, "params": {"optimizer.lr": 1e-2}}])
    raw.enqueue_trial({"optimizer.lr": 3e-3}, user_attrs={"point": {"role": "extension"}})
    assert run(opened(config(), tmp_path)) == [(3, 3e-3), (4, 1e-2)]


def test_what_follows_comes_before_points_that_a_cap_left_out(tmp_path: Path) -> None:
    study = opened(config("search.n_trials=2"), tmp_path)
    run(study)
    controller(study).add_followups([TrialSpec({"optimizer.lr": 1e-4}, "replicate", {"training.seed": 1}, of=1)])
    assert (study.next() or (0, TrialSpec({})))[1].role == "replicate"


def test_the_controller_reads_the_study_once_a_poll_and_sees_what_workers_did_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = opened(config(), tmp_path)
    # The controller's own view, as in another process.
    watching = controller(opened(config(), tmp_path))
    reads: list[int] = []
    read = optuna.storages.RDBStorage._get_trials

    def counted(*arguments: Any, **keys: Any) -> Any:
        reads.append(1)
        return read(*arguments, **keys)

    monkeypatch.setattr(optuna.storages.RDBStorage, "_get_trials", counted)
    for ended in range(len(LRS)):
        number, spec = worker.next() or (-1, TrialSpec({}))
        worker.tell(Record(number, spec, "complete", 60, 1.0, ""))
        reads.clear()
        with watching.read_once():
            assert watching.idle() == (ended + 1 == len(LRS))
            assert len(watching.records()) == len(watching.trials()) == ended + 1
        assert len(reads) == 1


def test_a_replicate_is_never_pruned(tmp_path: Path) -> None:
    study = opened(config("pruner=sync_halving"), tmp_path)
    for loss in (1.0, 2.0):
        number, spec = study.next() or (-1, TrialSpec({}))
        study.report([EvalReport(number, 20, 60, 6, loss)])
        study.tell(Record(number, spec, "complete", 60, loss, ""))
    third = study.next() or (-1, TrialSpec({}))
    controller(study).add_followups([TrialSpec({"optimizer.lr": 1e-5}, "replicate", {"training.seed": 1}, of=0)])
    number, _ = study.next() or (-1, TrialSpec({}))
    assert study.report([EvalReport(third[0], 20, 60, 6, 5.0), EvalReport(number, 20, 60, 6, 9.0)]) == {
        third[0]: "pruned"
    }


def test_a_search_begins_at_the_prior_and_a_grid_does_not(tmp_path: Path) -> None:
    searched, gridded = tmp_path / "tpe", tmp_path / "grid"
    for folder in (searched, gridded):
        folder.mkdir()
    study = opened(tpe(3), searched, first={"optimizer.lr": 2e-3})
    assert study.next() == (0, TrialSpec({"optimizer.lr": 2e-3}, "prior"))
    kill(study)
    again = opened(tpe(3), searched, first={"optimizer.lr": 2e-3})
    assert len(run(again)) == 3
    study = opened(config(), gridded, first={"optimizer.lr": 2e-3})
    assert [lr for _, lr in run(study)] == LRS


@pytest.mark.parametrize(
    ("overrides", "fingerprint", "named"),
    [
        (("optimizer.weight_decay=0.5",), "data", "optimizer.weight_decay: was 0.0 and is now 0.5"),
        (("space.optimizer.lr=[1e-5]",), "data", "space.optimizer.lr"),
        ((), "other data", "data fingerprint"),
        (
            ("optimizer.eps=1e-6", "training.seed=1"),
            "data",
            "optimizer.eps: was 1e-08 and is now 1e-06; training.seed: was",
        ),
    ],
)
def test_a_changed_sweep_of_the_same_name_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], fingerprint: str, named: str
) -> None:
    opened(config(), tmp_path)
    with pytest.raises(InputError) as refusal:
        opened(config(*overrides), tmp_path, fingerprint)
    assert named in str(refusal.value)


def test_what_does_not_change_the_measurements_may_change(tmp_path: Path) -> None:
    run(opened(config(), tmp_path), at_most=1)
    assert len(run(opened(config("tracking=none", "search.n_trials=2"), tmp_path))) == 1


def test_looking_at_a_study_needs_no_data(tmp_path: Path) -> None:
    def found(*overrides: str) -> ControllerStudy | None:
        return find_study(config(*overrides), search_space.axes(config(*overrides)), tmp_path)

    assert found() is None
    assert list(tmp_path.iterdir()) == []
    run(opened(config(), tmp_path))
    there = found()
    assert there is not None
    assert there.finished()
    with pytest.raises(InputError, match=r"optimizer\.eps: was"):
        found("optimizer.eps=1e-6")


def test_a_kill_while_the_study_is_made_bricks_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    assert find_study(config(), search_space.axes(config()), tmp_path) is None
    optuna.create_study(study_name="lora_lr", storage=f"sqlite:///{tmp_path}/study.db")
    assert find_study(config(), search_space.axes(config()), tmp_path) is None
    assert len(run(opened(config(), tmp_path))) == 3


def test_a_locked_storage_is_a_storage_fault_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrsweep.search.storage.PATIENCE", 1.0)
    study = opened(config(), tmp_path)
    with sqlite3.connect(tmp_path / "study.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=r"study\.db"):
            study.next()
        other.execute("ROLLBACK")
    other.close()


def test_a_value_waits_for_a_locked_storage(tmp_path: Path) -> None:
    study = opened(config(), tmp_path)
    number, spec = study.next() or (-1, TrialSpec({}))
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.5, lambda: other.execute("ROLLBACK"))
    timer.start()
    study.tell(Record(number, spec, "complete", 10, 1.0, ""))
    timer.join()
    other.close()
    assert [record.eval_loss for record in controller(study).records()] == [1.0]


def test_a_file_that_is_no_study_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, but somebody's notes\n" * 50)
    with pytest.raises(StorageError, match=r"study\.db: not usable as a study"):
        opened(config(), tmp_path)
    assert (tmp_path / "study.db").read_text().startswith("not a database")


def test_a_bad_pruner_option_is_refused() -> None:
    for overrides in (
        ("pruner=median", "pruner.kwargs={n_startups: 1}"),
        ("pruner=sync_halving", "pruner.kwargs={first_rung: 2}"),
    ):
        with pytest.raises(InputError, match=r"pruner\.kwargs"):
            check_search(config(*overrides))
    with pytest.raises(InputError, match=r"pruner\.kwargs"):
        check_search(tpe(4, "pruner.kwargs={foo: 1}"))


def test_two_workers_never_have_the_same_trial(tmp_path: Path) -> None:
    first, second = opened(config(), tmp_path), opened(config(), tmp_path)
    taken = [study.next() for study in (first, second, first, second)]
    assert [entry[0] if entry else None for entry in taken] == [0, 1, 2, None]


def test_a_dead_workers_trial_is_taken_over_and_its_ghost_is_not_heard(tmp_path: Path) -> None:
    ghost, other = opened(config(), tmp_path), opened(config(), tmp_path)
    number, spec = ghost.next() or (-1, TrialSpec({}))
    assert other.next() == (1, TrialSpec({"optimizer.lr": 1e-4}))
    kill(ghost)
    assert other.next() == (number, spec)
    # It was only asleep, and comes back.
    assert ghost.report([EvalReport(number, 10, 60, 6, 9.0)]) == {number: "lost"}
    ghost.tell(Record(number, spec, "complete", 10, 9.0, ""))
    assert controller(other).records() == []
    other.tell(Record(number, spec, "complete", 10, 1.0, ""))
    assert [(record.number, record.eval_loss) for record in controller(other).records()] == [(number, 1.0)]


def test_a_trial_let_go_of_is_free_at_once(tmp_path: Path) -> None:
    first, second = opened(config(), tmp_path), opened(config(), tmp_path)
    taken = first.next()
    first.release(0)
    assert second.next() == taken


def test_what_dies_with_its_worker_is_tried_last_and_alone_and_then_given_up(tmp_path: Path) -> None:
    owner = open_study(config(), search_space.axes(config()), tmp_path, "data")
    first = opened(config(), tmp_path)
    assert [(first.next() or (-1,))[0] for _ in range(2)] == [0, 1]
    name = first._liveness.worker
    kill(first)
    assert owner.record_death(name, "killed by SIGSEGV") == [0, 1]
    second = opened(config(), tmp_path)
    number, spec = second.next() or (-1, TrialSpec({}))
    assert (number, second.next()) == (2, None)
    second.tell(Record(number, spec, "complete", 10, 1.0, ""))
    assert (second.next() or (-1,))[0] == 0
    assert second.next() is None
    kill(second)
    owner.record_death(second._liveness.worker, "killed by SIGSEGV")
    third = opened(config(), tmp_path)
    number, spec = third.next() or (-1, TrialSpec({}))
    third.tell(Record(number, spec, "complete", 10, 1.0, ""))
    assert controller(third).finished()
    ends = {record.number: (record.status, record.reason) for record in controller(third).records()}
    assert ends[0] == ("failed", "the process that trained it died 2 times: killed by SIGSEGV")
    assert (ends[1][0], ends[2][0]) == ("complete", "complete")


def test_what_is_killed_each_time_is_tried_alone_and_then_given_up(tmp_path: Path) -> None:
    owner = open_study(config(), search_space.axes(config()), tmp_path, "data")

    def killed(worker: WorkerStudy) -> None:
        kill(worker)
        owner.record_death(worker._liveness.worker, "killed by SIGKILL", killed=True)

    for _ in range(2):
        worker = opened(config(), tmp_path)
        assert [(worker.next() or (-1,))[0] for _ in range(2)] == [0, 1]
        killed(worker)
    # Twice may be a reason: the third time it has a worker of its own.
    third = opened(config(), tmp_path)
    assert ((third.next() or (-1,))[0], third.next()) == (2, None)
    third.tell(Record(2, TrialSpec({}), "complete", 10, 1.0, ""))
    assert ((third.next() or (-1,))[0], third.next()) == (0, None)
    killed(third)
    (given_up, _) = sorted(owner.records(), key=lambda record: record.number)
    reason = "the process that trained it died 3 times: killed by SIGKILL"
    assert (given_up.number, given_up.status, given_up.reason) == (0, "failed", reason)
    # With progress in between, kills do not add up.
    for step in range(10, 50, 10):
        worker = opened(config(), tmp_path)
        assert (worker.next() or (-1,))[0] == 1
        worker.report([EvalReport(1, step, 60, 6, 1.0)])
        killed(worker)
    assert len(owner.records()) == 2


def test_what_fails_in_company_is_tried_alone(tmp_path: Path) -> None:
    study = opened(config(), tmp_path)
    for _ in range(2):
        study.next()
    for number in range(2):
        study.suspect(number, "RuntimeError: somebody's")
    number, spec = study.next() or (-1, TrialSpec({}))
    study.tell(Record(number, spec, "complete", 10, 1.0, ""))
    assert ((study.next() or (-1,))[0], study.next()) == (0, None)
    study.suspect(0, "RuntimeError: somebody's")
    number, spec = study.next() or (-1, TrialSpec({}))
    study.tell(Record(number, spec, "complete", 10, 1.0, ""))
    ends = {record.number: (record.status, record.reason) for record in controller(study).records()}
    assert ends[0] == ("failed", "it failed 2 times: RuntimeError: somebody's")
    assert (ends[1][0], ends[2][0]) == ("complete", "complete")


def test_workers_wait_for_what_follows_as_long_as_somebody_keeps_the_sweep(tmp_path: Path) -> None:
    owner = open_study(config(), search_space.axes(config()), tmp_path, "data")
    liveness = Liveness(tmp_path, new_worker_name())
    owner.open(liveness.worker, {})
    worker = opened(config(), tmp_path)
    assert worker.more_may_follow()
    owner.close()
    assert not worker.more_may_follow()
    owner.open(liveness.worker, {})
    assert worker.more_may_follow()
    liveness._lock.close()
    assert not worker.more_may_follow()


def test_rungs_are_shared_between_workers(tmp_path: Path) -> None:
    first, second = opened(tpe(4), tmp_path), opened(tpe(4), tmp_path)
    (a, _), (b, _), (c, _) = (study.next() or (-1, TrialSpec({})) for study in (first, first, second))
    first.report([EvalReport(a, 20, 60, 6, 1.0), EvalReport(b, 20, 60, 6, 1.0)])
    assert second.report([EvalReport(c, 20, 60, 6, 5.0)]) == {c: "pruned"}


def test_a_sweep_put_aside_is_whole_and_its_name_free(tmp_path: Path) -> None:
    folder = Path("outputs/lora_lr")
    assert put_aside(config(), folder) is None
    folder.mkdir(parents=True)
    run(opened(config(), folder), at_most=2)
    assert put_aside(config(), folder) == Path("outputs/lora_lr.1")
    folder.mkdir()
    assert len(run(opened(config(), folder))) == 3
    assert put_aside(config(), folder) == Path("outputs/lora_lr.2")
    old = find_study(config(), search_space.axes(config()), Path("outputs/lora_lr.1"))
    assert old is not None
    assert len(old.records()) == 2


def test_putting_aside_takes_a_study_outside_the_folder_along(tmp_path: Path) -> None:
    folder = Path("outputs/lora_lr")
    elsewhere = config(f"search.storage='sqlite:///{tmp_path}/studies.db'")
    for number in (1, 2, 4):
        folder.mkdir(parents=True)
        assert len(run(opened(elsewhere, folder))) == 3
        assert put_aside(elsewhere, folder) == Path(f"outputs/lora_lr.{number}")
        assert find_study(elsewhere, search_space.axes(elsewhere), folder) is None
        if number == 2:
            # A name may be free as a folder and taken in the database.
            optuna.create_study(storage=f"sqlite:///{tmp_path}/studies.db", study_name="lora_lr.3")
    old = optuna.load_study(study_name="lora_lr.1", storage=f"sqlite:///{tmp_path}/studies.db")
    assert [trial.state.name for trial in old.trials] == ["COMPLETE"] * 3


def test_a_running_sweep_is_not_put_aside(tmp_path: Path) -> None:
    folder = SweepFolder("lora_lr")
    folder.create()
    elsewhere = config(f"search.storage='sqlite:///{tmp_path}/studies.db'")
    study = opened(elsewhere, folder.path)
    with folder.locked(), pytest.raises(StorageError, match="another process is running this sweep"):
        put_aside(elsewhere, folder.path)
    assert len(run(study)) == 3
