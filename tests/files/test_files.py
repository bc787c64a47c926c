"""Files: whole or absent, readable after a kill, numbers that every YAML reader takes as numbers, no secrets."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import write_text
from lrsweep.files.metrics_log import MetricsLog, read_metrics
from lrsweep.files.paths import SweepFolder, existing_sweep
from lrsweep.files.yaml_writer import to_yaml


def test_metrics_come_back_as_written_non_finite_too(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(1, {"loss": 0.1})
    log.append(2, {"loss": math.inf, "grad_norm": math.nan})
    log.close()
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 0.1}
    assert second["loss"] == math.inf
    assert math.isnan(second["grad_norm"])


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(3):
        log.append(step, {"loss": 1.0})
    log.close()
    whole = log.path.read_bytes()
    for cut in range(1, 20):
        log.path.write_bytes(whole[:-cut])
        assert [row["step"] for row in read_metrics(tmp_path)] == ([0, 1, 2] if cut == 1 else [0, 1])


def test_synced_lines_outlive_a_kill(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from lrsweep.files.metrics_log import MetricsLog\n"
        f"log = MetricsLog(Path({str(tmp_path)!r})); log.append(1, {{'loss': 2.0}}); log.sync()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("value", [1e-4, 3e-05, 1e-05, 5e-324, 1e300, 0.1, 1.0, 123456789.5, 2.5e-07, -1e-8])
def test_floats_read_as_the_same_number_by_plain_yaml(value: float) -> None:
    assert yaml.safe_load(to_yaml({"x": value, "pair": (value, value)})) == {"x": value, "pair": [value, value]}


def test_secrets_are_masked() -> None:
    config = sweep_config(
        ["+sweep=lora_lr", "search.storage='postgresql://me:s3cret@db/x'", "tracking.uri='http://u:hunter2@host:5000'"]
    )
    text = to_yaml(config.masked())
    assert "s3cret" not in text
    assert "hunter2" not in text
    assert "postgresql://me:***@db/x" in text


def test_two_processes_cannot_run_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder("x")
    folder.create()
    script = (
        "from lrsweep.files.paths import SweepFolder\nfrom lrsweep.errors import StorageError\n"
        "try:\n    with SweepFolder('x').locked(): print('entered')\nexcept StorageError as fault: print(fault)"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    with folder.locked():
        assert "another process is running this sweep" in other()
    assert other() == "entered\n"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    script = (
        "import resource, signal; from pathlib import Path; from lrsweep.files.atomic import write_text\n"
        "from lrsweep.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: write_text(Path({str(tmp_path)!r}) / 'f.yaml', 'x' * 5000)\n"
        "except StorageError as fault: print(fault)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"disk full: {tmp_path}/f.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder("there")
    write_text(folder.config, "name: there\n")
    with pytest.raises(InputError, match=r"nowhere: no such sweep in outputs/ \(choices: there\)"):
        existing_sweep("nowhere")


def test_a_folder_that_cannot_be_made_is_a_storage_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="outputs"):
        SweepFolder("x").create()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write into")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SweepFolder("here").check_writable()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir("/proc/self")
    with pytest.raises(StorageError, match=r"^/proc/"):
        SweepFolder("here").check_writable()
