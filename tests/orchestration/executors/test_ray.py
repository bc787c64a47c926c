"""Workers as Ray actors: on a Ray of the sweep's own, and on a cluster of two nodes of which one is lost."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import lrsweep
from tests.orchestration.executors.sweeps import begun, check_complete, children, cwd, grid, kill_one, start

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'lrsweep[ray]'"
    ),
]


@dataclass
class Cluster:
    """A cluster in processes of its own, and what its token is."""

    process: "subprocess.Popen[str]"
    address: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_AUTH_TOKEN": self.token}

    def lose_a_node(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("lose\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "lost\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    token = secrets.token_hex(32)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.orchestration.executors.a_cluster"],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
    )
    assert process.stdout is not None
    try:
        yield Cluster(process, process.stdout.readline().strip(), token)
    finally:
        process.communicate(timeout=60)


def test_a_ray_of_its_own(tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.1), "executor=ray", "executor.workers=2")
    sweep.wait_for_trials(8)
    kill_one(sweep)
    code, said = sweep.wait()
    assert code == 0, said
    assert "a worker died" in said
    check_complete(tmp_path)
    assert sorted(begun(tmp_path).values())[:15] == [1] * 15
    assert sweep.workers() == []
    assert [pid for pid in children("raylet") if cwd(pid) == tmp_path] == []


def test_ctrl_c_does_not_wait_for_actors_without_a_place(cluster: Cluster, database: str, tmp_path: Path) -> None:
    """The cluster has room for two; those that have it free it only once the sweep ends."""
    words = [*grid(0.5), "executor=ray", "executor.workers=4", f"executor.address={cluster.address}"]
    sweep = start(tmp_path, *words, f"search.storage='{database}'", env=cluster.environment)
    sweep.wait_for_trials(2)
    sweep.process.send_signal(signal.SIGINT)
    code, said = sweep.wait(60)
    assert code == 130, said
    assert "interrupted; resume with: lrsweep +sweep=lora_lr" in said
    assert sweep.workers() == []


def test_a_cluster_that_loses_a_node(cluster: Cluster, database: str, tmp_path: Path) -> None:
    words = [*grid(0.3), "executor=ray", "executor.workers=2", f"executor.address={cluster.address}"]
    sweep = start(tmp_path, *words, f"search.storage='{database}'", env=cluster.environment)
    sweep.wait_for_trials(6)
    assert len(sweep.workers()) == 2
    cluster.lose_a_node()
    code, said = sweep.wait()
    assert code == 0, said
    assert "a worker died" in said
    check_complete(tmp_path)
    assert sorted(begun(tmp_path).values())[:15] == [1] * 15


def test_without_its_token_the_cluster_lets_nobody_in(cluster: Cluster, database: str, tmp_path: Path) -> None:
    words = [
        *grid(),
        "executor=ray",
        f"executor.address={cluster.address}",
        f"search.storage='{database}'",
    ]
    run = lrsweep(*words, cwd=tmp_path, env={"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.startswith(f"lrsweep: executor.address={cluster.address}: the cluster does not accept this token")
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_more_than_any_node_has_is_refused(tmp_path: Path) -> None:
    run = lrsweep(*grid(), "executor=ray", "executor.gpus_per_worker=1", cwd=tmp_path)
    assert run.returncode == 2, run.stdout
    assert "executor.gpus_per_worker=1: no node of the cluster has more than 0" in run.stderr
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
