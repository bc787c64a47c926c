"""A study in a real PostgreSQL: many workers, no trial lost, none twice; faults in one line."""

from pathlib import Path

import psycopg
import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.errors import InputError
from lrsweep.orchestration.executors.factory import build_executor
from tests.conftest import lrsweep
from tests.orchestration.executors import postgres
from tests.orchestration.executors.sweeps import begun, check_complete, grid, kill_one, start

TRIALS = 24


def check_search(url: str, name: str, folder: Path) -> None:
    """As many trials as were asked for, each begun once and complete, no two alike."""
    trials = postgres.trials(url, name)
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len({trial.params["optimizer.lr"] for trial in trials}) == TRIALS
    assert begun(folder) == dict.fromkeys(range(TRIALS), 1)


def search(seconds_a_step: float) -> list[str]:
    return [
        "+sweep=adamw_tpe",
        *(word for word in grid(seconds_a_step) if not word.startswith(("+sweep", "space."))),
        "search=random",
        f"search.n_trials={TRIALS}",
        "pruner=none",
        "tracking=none",
    ]


@pytest.mark.scale
def test_two_workers_and_a_random_search(database: str, tmp_path: Path) -> None:
    run = lrsweep(*search(0.01), "executor.workers=2", f"search.storage='{database}'", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    check_search(database, "grid", tmp_path)
    again = lrsweep(*search(0.01), "executor.workers=2", f"search.storage='{database}'", cwd=tmp_path)
    assert "is already complete: 24 trials" in again.stdout
    password = database.split(":")[2].split("@")[0]
    for path in (tmp_path / "outputs").rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path


@pytest.mark.scale
def test_an_idle_worker_holds_no_connection(database: str, tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.5), "executor.workers=2", "tracking=none", f"search.storage='{database}'")
    sweep.wait_for_trials(1)
    counts = []
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(40):
            connection.execute("select pg_sleep(0.05)")
            row = connection.execute(
                "select count(*) from pg_stat_activity where backend_type = 'client backend'"
            ).fetchone()
            assert row is not None
            counts.append(row[0] - 1)
    assert min(counts) == 0
    kill_one(sweep)
    sweep.process.terminate()
    code, said = sweep.wait()
    assert code == 143, said


@pytest.mark.scale
def test_four_workers_lose_and_repeat_nothing_in_five_sweeps(database: str, tmp_path: Path) -> None:
    for i in range(5):
        folder = tmp_path / str(i)
        folder.mkdir()
        words = [*search(0.02), "executor.workers=4", f"search.storage='{database}'"]
        sweep = start(folder, *words)
        code, said = sweep.wait()
        assert code == 0, said
        check_search(database, "grid", folder)
        postgres.empty(database)


@pytest.mark.scale
def test_four_workers_of_which_two_are_killed(database: str, tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.2), "executor.workers=4", f"search.storage='{database}'")
    for count in (4, 9):
        sweep.wait_for_trials(count)
        kill_one(sweep)
    code, said = sweep.wait()
    assert code == 0, said
    check_complete(tmp_path)
    assert sorted(begun(tmp_path).values())[:14] == [1] * 14


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    run = lrsweep(*grid(), "search.storage='postgresql://me:secret1@127.0.0.1:9/x'", cwd=tmp_path)
    assert run.returncode == 4
    assert run.stderr.count("\n") == 1
    assert "postgresql://me:***@127.0.0.1:9/x: not usable as a study" in run.stderr
    assert "secret1" not in run.stderr + run.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["executor=ray", "executor.address=10.0.0.1:6379"],
            "executor.address=10.0.0.1:6379: its workers run on several",
        ),
        (["executor=slurm", "executor.cluster=slurm"], "executor=slurm: its workers run on several machines"),
        (
            ["executor=slurm", "executor.cluster=slurm", "search.storage=sqlite:///shared/study.db"],
            "set search.storage=postgresql://USER:PASSWORD@HOST/DATABASE",
        ),
    ],
)
def test_sqlite_is_refused_where_workers_are_on_several_machines(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match="a SQLite file is only safe on one") as refused:
        build_executor(sweep_config(["+sweep=lora_lr", *words]))
    assert said in str(refused.value)
