"""The user's own files: whatever the working folder is called, and whatever else is in `./conf`."""

import os
from pathlib import Path

import pytest

from lrsweep.config.hydra_compose import sweep_config, sweep_names
from lrsweep.errors import InputError

ODD = [
    "a b",
    "[a",
    "{a}",
    "a=b",
    "a#b",
    "a'b",
    'a"b',
    "é🙂",
    "~a",
    "(a)",
    "a&b;c",
    "a,b",
    "a?b",
    "${a}",
    "a\\b",
    "a:b",
    "%20",
]


@pytest.mark.parametrize("name", ODD)
def test_a_working_folder_may_be_called_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "own.yaml").write_text("path: ./tiny\n")
    monkeypatch.chdir(folder)
    assert sweep_config(["+sweep=lora_lr", "model=own"]).model.path == "./tiny"


def test_only_what_is_asked_for_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("conf/model/deep", "conf/db", "conf/hydra", "sweeps"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("conf/config.yaml", "conf/db/mysql.yaml", "conf/model/latin.yaml", "sweeps/latin.yaml"):
        (tmp_path / name).write_bytes(b"user: \xe9\xff\n")
    (tmp_path / "conf" / "model" / "huge.yaml").write_text("a: 1\n" * 300_000)
    (tmp_path / "sweeps" / "torn.yaml").write_text("space: {\n")
    for name in ("conf/model/pipe.yaml", "conf/pipe.yaml", "sweeps/pipe.yaml"):
        os.mkfifo(tmp_path / name)
    assert sweep_config(["+sweep=lora_lr"]).name == "lora_lr"
    assert {"lora_lr", "latin", "pipe"} <= set(sweep_names())
    for option, rule in (
        ("model=latin", "not UTF-8"),
        ("model=huge", "1500000 bytes"),
        ("model=pipe", "no such option"),
        ("+db=mysql", "no such"),
        ("+sweep=torn", "not valid YAML"),
        ("+sweep=pipe", "not a file"),
    ):
        sweep = [] if "sweep" in option else ["+sweep=lora_lr"]
        with pytest.raises(InputError, match=rule):
            sweep_config([*sweep, option])
