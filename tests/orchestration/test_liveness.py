"""Who is alive: by locks on this machine, by beats elsewhere, whatever the clock on the wall says."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrsweep.orchestration import liveness
from lrsweep.orchestration.liveness import Liveness, new_worker_name, wait_for_earlier_workers


def test_a_worker_is_alive_until_it_closes_or_its_process_ends(tmp_path: Path) -> None:
    me, other = Liveness(tmp_path, new_worker_name()), Liveness(tmp_path, new_worker_name())
    assert not me.is_dead(other.worker, 0)
    other.close()
    assert me.is_dead(other.worker, 0)
    assert me.is_dead(new_worker_name(), 0)
    name = new_worker_name()
    script = (
        "import sys; from pathlib import Path; from lrsweep.orchestration.liveness import Liveness\n"
        f"me = Liveness(Path({str(tmp_path)!r}), {name!r}); print('here', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert not me.is_dead(name, 0)
    process.kill()
    process.communicate()
    assert me.is_dead(name, 0)


def test_elsewhere_a_counter_that_stands_still_is_death_on_ones_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "LEASE", 0.3)
    # Clocks on the wall that jump a day have no say.
    monkeypatch.setattr(time, "time", lambda: 10.0**10)
    me = Liveness(tmp_path, new_worker_name())
    far = "anothermachine-1-abcdef00"
    for beat in range(3):
        assert not me.is_dead(far, beat)
        time.sleep(0.2)
    assert not me.is_dead(far, 2)
    time.sleep(0.2)
    assert me.is_dead(far, 2)
    assert not me.is_dead(far, 3)


def test_waiting_for_an_earlier_runs_workers(tmp_path: Path) -> None:
    slow = Liveness(tmp_path, new_worker_name())
    begun = time.monotonic()
    wait_for_earlier_workers(tmp_path, 0.5)
    assert time.monotonic() - begun > 0.4
    slow.close()
    dead = tmp_path / ".workers" / new_worker_name()
    dead.touch()
    wait_for_earlier_workers(tmp_path, 60)
    assert not dead.exists()
