"""Workers as Ray actors: on a Ray of the sweep's own, and on a cluster of two nodes of which one is lost."""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lrsweep
from tests.executors.sweeps import begun, check_complete, children, cwd, grid, kill_one, start

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lrsweep[ray]'")
pytestmark = [pytest.mark.scale, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with a node without room for workers, and two nodes with room for one each; its token is in the environment."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    try:
        yield made
    finally:
        made.shutdown()


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


def test_a_cluster_that_loses_a_node(cluster: Any, database: str, tmp_path: Path) -> None:
    words = [*grid(0.3), "executor=ray", "executor.workers=2", f"executor.address={cluster.address}"]
    sweep = start(tmp_path, *words, f"search.storage='{database}'")
    sweep.wait_for_trials(6)
    assert len(sweep.workers()) == 2
    lost = sorted(cluster.worker_nodes, key=lambda node: node.raylet_pid if hasattr(node, "raylet_pid") else 0)[0]
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    code, said = sweep.wait()
    assert code == 0, said
    assert "a worker died" in said
    check_complete(tmp_path)
    assert sorted(begun(tmp_path).values())[:15] == [1] * 15


def test_without_its_token_the_cluster_lets_nobody_in(cluster: Any, tmp_path: Path) -> None:
    words = [
        *grid(),
        "executor=ray",
        f"executor.address={cluster.address}",
        "search.storage='postgresql://me@127.0.0.1:9/x'",
    ]
    env = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_MODE": "token"}
    begun_at = time.monotonic()
    run = lrsweep(*words, cwd=tmp_path, env=env)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.startswith(f"lrsweep: executor.address={cluster.address}: ")
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
    assert time.monotonic() - begun_at < 60


def test_more_than_any_node_has_is_refused(tmp_path: Path) -> None:
    run = lrsweep(*grid(), "executor=ray", "executor.gpus_per_worker=1", cwd=tmp_path)
    assert run.returncode == 2, run.stdout
    assert "executor.gpus_per_worker=1: no node of the cluster has more than 0" in run.stderr
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
