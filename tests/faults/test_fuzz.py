"""Random command lines, configs and files: whatever they hold, one line and exit code 2, 3 or 4, or a plain answer.

`make test` tries a few hundred of each; the marker `faults` tries for an hour.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lrsweep.cli.main import COMMANDS, main
from lrsweep.config.schema import keys
from tests.faults.bad_commands import DATA, FINE, TRAIN, a_finished_sweep
from tests.faults.bad_data import TEXT
from tests.faults.cases import lines, put

# Runs a command line and judges its end.
Try = Callable[..., None]
# The exit codes of a command that worked, and of errors that were expected; 1 is an error that no code expected.
EXPECTED = (0, 2, 3, 4)
# Seconds that one input may take, on a busy machine.
_LONGEST = 30.0
# Every sweep is refused at the latest here, before it loads a model.
_NO_DATA = "data.path=./nowhere"
# What a kernel passes as an argument: no NUL.
_WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=30)
_NUMBERS = st.sampled_from(
    ["0", "-1", "1", "1e30", "1e308", "1e-320", "1e400", "nan", "inf", "0x10", "1_000", "07", "1:30", "2020-01-01"]
)
_PLAIN = st.sampled_from(
    ["null", "true", "''", "[]", "{}", "[[]]", "???", "${name}", "${a", "a b", "'", '"', "\\", "é🙂", "\x1b[31m"]
)
_LEAVES = st.one_of(_NUMBERS, _PLAIN, st.integers().map(str), st.floats().map(str), _WORDS)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]"),
        st.dictionaries(st.sampled_from(["low", "high", "num", "step", "log", "a"]), inner, max_size=4).map(
            lambda tree: "{" + ",".join(f"{key}: {value}" for key, value in tree.items()) + "}"
        ),
    ),
    max_leaves=6,
)
_KEYS = st.one_of(st.sampled_from(keys()), st.sampled_from(keys()).map(lambda key: f"space.{key}"), _WORDS)
_OVERRIDES = st.tuples(st.sampled_from(["", "+", "++", "~"]), _KEYS, _VALUES).map(lambda p: f"{p[0]}{p[1]}={p[2]}")
_FLAGS = [
    "--help",
    "--cfg",
    "job",
    "--info",
    "--resolve",
    "-c",
    "-m",
    "--out",
    "--to",
    "--base",
    "--json",
    "--uri",
    "trl",
]
_ARGUMENTS = st.one_of(
    _WORDS, _OVERRIDES, st.sampled_from([*_FLAGS, "lora_lr", "train.yaml", "log.jsonl", "", ".", "/"])
)
# These would serve for ever, or read this machine.
_SUBCOMMANDS = st.sampled_from(sorted(COMMANDS.keys() - {"ui", "doctor", "find-lr"}))


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's content with something cut, replaced, repeated or put in, or other bytes altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.integers(0, 12)))
    put_in = draw(
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"null", b"[]", b"{}", b"NaN", b"-1", b'"x"', b"1e999", b"9" * 5000, b"\n", b"\xff\xfe"]),
            st.sampled_from([b"!!binary a", b"!!timestamp 2020-99-99", b"&a *a", b"\x1b[31m", b"[" * 2000, b"true"]),
        )
    )
    return content[:start] + put_in + content[draw(st.sampled_from([start, end])) :]


def _finished(name: str) -> Callable[[Path], bytes]:
    return lambda folder: (folder / "outputs" / "lora_lr" / name).read_bytes()


_CONFIG = b"# @package _global_\noptimizer: {lr: 1.0e-4}\nspace:\n  optimizer:\n    lr: [1.0e-5, 1.0e-4]\n"
_LOG = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5, "eval_loss": 1.9}\n{"step": 3, "loss": 1.2}\n'
_STATE = b'{"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}]}'
_METRICS = b'{"step": 0, "eval_loss": 4.5, "time": 1}\n{"step": 60, "loss": 4.0, "eval_loss": 4.1, "time": 2}\n'
_REFUSED = ("executor=inline", _NO_DATA)
_EXPORT = ("export", "lora_lr", "--to", "trl")
# Each file that is read: its place, a good content, and the command that reads it.
FILES: tuple[tuple[str, bytes | Callable[[Path], bytes], tuple[str, ...]], ...] = (
    ("sweeps/mine.yaml", _CONFIG, ("+sweep=mine", *_REFUSED)),
    (
        "conf/model/own.yaml",
        b"path: ./tiny\ndtype: float32\n",
        ("+sweep=lora_lr", "model=own", *_REFUSED),
    ),
    ("log.jsonl", _LOG, ("diagnose", "log.jsonl")),
    ("trainer_state.json", _STATE, ("diagnose", "trainer_state.json")),
    ("train.yaml", FINE.encode(), ("import", "transformers", "train.yaml", "--out", "sweeps/new.yaml")),
    ("base.yaml", FINE.encode(), ("export", "lora_lr", "--to", "transformers", "--base", "base.yaml")),
    ("outputs/lora_lr/summary.json", _finished("summary.json"), _EXPORT),
    ("outputs/lora_lr/config.yaml", _finished("config.yaml"), ("sync", "lora_lr")),
    ("outputs/lora_lr/trials/0001/metrics.jsonl", _METRICS, ("report", "lora_lr")),
    (
        "outputs/lora_lr/trials/0001/eval_rows.json",
        b'{"sums": [1.0], "tokens": [2]}',
        ("export", "lora_lr", "--to", "trl"),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished sweep and everything that a command may name."""
    folder = tmp_path_factory.mktemp("fuzz")
    a_finished_sweep(folder / "outputs" / "lora_lr")
    put(folder, {**DATA, "train.yaml": str(TRAIN), "log.jsonl": _LOG, "rows.jsonl": lines(good=TEXT)})
    return folder


@pytest.fixture
def tried(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Try]:
    """Runs a command line in this process and judges its end."""
    monkeypatch.chdir(folder)

    def run(*argv: str) -> None:
        sys.argv = ["lrsweep", *argv]
        started = time.process_time()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        spent = time.process_time() - started
        assert ended.value.code in EXPECTED, (argv, said)
        assert "Traceback" not in said, (argv, said)
        # `diagnose` tells of each file that it cannot read.
        several = len(argv) if argv[:1] == ("diagnose",) else 1
        assert ended.value.code == 0 or 1 <= said.count("\n") <= several, (argv, said)
        assert all(line.startswith("lrsweep: ") for line in said.splitlines()) or ended.value.code == 0, (argv, said)
        assert "\x1b" not in said, (argv, said)
        assert spent < _LONGEST, (argv, spent)

    before = dict(os.environ)
    monkeypatch.setattr(sys, "argv", [])
    yield run
    # A command sets the environment of its process.
    os.environ.clear()
    os.environ.update(before)
    logging.captureWarnings(False)


def fuzz(test: Any, examples: int, *strategies: Any) -> None:
    """Runs a test on examples that a seed decides."""
    made = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    made(given(*strategies)(test))()  # type: ignore[no-untyped-call]


def test_any_key_with_any_value(tried: Try) -> None:
    fuzz(
        lambda overrides: tried("+sweep=lora_lr", *overrides, "executor=inline", _NO_DATA),
        25,
        st.lists(_OVERRIDES, min_size=1, max_size=2),
    )


def test_any_arguments(tried: Try) -> None:
    fuzz(lambda command, rest: tried(command, *rest), 100, _SUBCOMMANDS, st.lists(_ARGUMENTS, max_size=4))


@pytest.mark.parametrize(("name", "content", "command"), FILES, ids=[name for name, _, _ in FILES])
def test_any_bytes(
    name: str,
    content: bytes | Callable[[Path], bytes],
    command: tuple[str, ...],
    folder: Path,
    tried: Try,
) -> None:
    path = folder / name
    good = content(folder) if callable(content) else content
    path.parent.mkdir(parents=True, exist_ok=True)

    def one(bad: bytes) -> None:
        path.write_bytes(bad)
        (folder / "sweeps" / "new.yaml").unlink(missing_ok=True)
        tried(*command)

    try:
        fuzz(one, 8 if "sweep" in command[0] else 20, broken(good))
    finally:
        path.write_bytes(good)


@pytest.mark.faults
def test_for_an_hour(folder: Path, tried: Try) -> None:
    until = time.monotonic() + 3600

    def one(data: st.DataObject) -> None:
        if time.monotonic() > until:
            return
        kind = data.draw(st.integers(0, len(FILES) + 1))
        if kind == 0:
            tried("+sweep=lora_lr", *data.draw(st.lists(_OVERRIDES, max_size=3)), "executor=inline", _NO_DATA)
        elif kind == 1:
            tried(data.draw(_SUBCOMMANDS), *data.draw(st.lists(_ARGUMENTS, max_size=4)))
        else:
            name, content, command = FILES[kind - 2]
            good = content(folder) if callable(content) else content
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "sweeps" / "new.yaml").unlink(missing_ok=True)
            try:
                (folder / name).write_bytes(data.draw(broken(good)))
                tried(*command)
            finally:
                (folder / name).write_bytes(good)

    while time.monotonic() < until:
        health = list(HealthCheck)
        wild = settings(max_examples=2000, deadline=None, database=None, suppress_health_check=health)
        wild(given(st.data())(one))()
