"""A second sweep in the same process meets nothing of the first."""

import json
import os
from pathlib import Path

import pytest

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.errors import InputError
from lrsweep.libraries import environment
from lrsweep.orchestration.preflight import prepare
from lrsweep.tracking.store import Store


def test_its_data_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = sweep_config(
        ["+sweep=lora_lr", "data=local", "data.path=rows.jsonl", "data.format=prompt_completion", "engine=trainer"]
    )
    axes = search_space.axes(config)
    found = []
    for answer in ("four", "five"):
        rows = [{"prompt": f"{i} and two make", "completion": answer} for i in range(20)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(prepare(config, axes, look=False)[1].fingerprint)
    assert found[0] != found[1]


def test_it_is_not_offered_the_sweeps_of_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "sweeps").mkdir(parents=True)
    (tmp_path / "a" / "sweeps" / "mine.yaml").write_text("# @package _global_\nspace: {optimizer: {lr: [1e-4]}}\n")
    monkeypatch.chdir(tmp_path / "a")
    assert sweep_config(["+sweep=mine"]).name == "mine"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="sweep=mine: no such option"):
        sweep_config(["+sweep=mine"])


def test_it_does_not_log_in_with_the_first_ones_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    before = dict(os.environ)
    with Store("http://me:secret@localhost:1", tmp_path).session():
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7", "the user's own stands"
    assert dict(os.environ) == before


def test_it_does_not_join_the_first_ones_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    before = dict(os.environ)
    with environment({"RAY_AUTH_TOKEN": "once", "RAY_AUTH_MODE": "token"}):
        assert os.environ["RAY_AUTH_TOKEN"] == "once"
    assert dict(os.environ) == before
