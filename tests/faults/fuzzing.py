"""Random commands, configs and files, and what may come of them: an answer, or one line and exit code 2, 3 or 4."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import strategies as st

from lrsweep.cli.main import COMMANDS
from lrsweep.config.schema import keys
from tests.faults.bad_commands import DATA, FINE, TRAIN, a_finished_sweep
from tests.faults.bad_data import ALPACA, TEXT
from tests.faults.cases import lines, put

# The exit codes of a command that worked, and of errors that were expected; 1 is an error that no code expected.
EXPECTED = (0, 2, 3, 4)
# Seconds that one input may take, on a busy machine.
LONGEST = 30.0
# Every sweep is refused at the latest here, before it loads a model.
NO_DATA = "data.path=./nowhere"
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
OVERRIDES = st.tuples(st.sampled_from(["", "+", "++", "~"]), _KEYS, _VALUES).map(lambda p: f"{p[0]}{p[1]}={p[2]}")
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
ARGUMENTS = st.one_of(_WORDS, OVERRIDES, st.sampled_from([*_FLAGS, "lora_lr", "train.yaml", "log.jsonl", "", ".", "/"]))
# These would serve for ever, or read this machine.
SUBCOMMANDS = st.sampled_from(sorted(COMMANDS.keys() - {"ui", "doctor", "find-lr"}))


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
_REFUSED = ("executor=inline", NO_DATA)
# Rows are read and tokenized, and then none has a label left.
_TOO_SHORT = ("+sweep=lora_lr", "executor=inline", "data=local", "data.max_length=2", "data.format=alpaca")
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
    *(
        (f"{dialect}.yaml", FINE.encode(), ("import", dialect, f"{dialect}.yaml", "--out", "sweeps/new.yaml"))
        for dialect in ("llamafactory", "axolotl", "trl", "ms-swift")
    ),
    (
        "running_log.txt",
        b"{'loss': 2.0, 'epoch': 0.1}\n{'loss': '1.5', 'epoch': 0.2}\n",
        ("diagnose", "running_log.txt"),
    ),
    ("rows.jsonl", lines(good=ALPACA).encode(), (*_TOO_SHORT, "data.path=rows.jsonl")),
    ("rows.json", json.dumps([ALPACA] * 12).encode(), (*_TOO_SHORT, "data.path=rows.json")),
    ("rows.csv", b"instruction,output\n" + b"Say yes,yes\n" * 12, (*_TOO_SHORT, "data.path=rows.csv")),
    (
        "outputs/lora_lr/trials/0001/eval_rows.json",
        b'{"sums": [1.0], "tokens": [2]}',
        ("export", "lora_lr", "--to", "trl"),
    ),
)


def prepare(folder: Path) -> None:
    """Makes a working folder with a finished sweep and everything that a command may name."""
    a_finished_sweep(folder / "outputs" / "lora_lr")
    put(folder, {**DATA, "train.yaml": str(TRAIN), "log.jsonl": _LOG, "rows.jsonl": lines(good=TEXT)})


def fault_of(argv: Sequence[str], code: object, stderr: str, seconds: float) -> str | None:
    """What is wrong with a command's end; None if it is as it has to be.

    Args:
        argv: The arguments.
        code: The exit code.
        stderr: What it printed there.
        seconds: The seconds of a processor that it took.
    """
    if code not in EXPECTED:
        return f"exit code {code}"
    if "Traceback" in stderr:
        return "a traceback"
    if "\x1b" in stderr:
        return "an escape sequence"
    if seconds > LONGEST:
        return f"{seconds:.0f} s"
    # `diagnose` tells of each file that it cannot read.
    several = len(argv) if argv[:1] == ["diagnose"] else 1
    if code != 0 and not 1 <= stderr.count("\n") <= several:
        return f"{stderr.count(chr(10))} lines"
    if code != 0 and not all(line.startswith("lrsweep: ") for line in stderr.splitlines()):
        return "a line that is not lrsweep's"
    return None


def forget() -> None:
    """Forgets the data of earlier inputs: a file of the same name holds something else by now."""
    if "lrsweep.training.inputs" in sys.modules:
        sys.modules["lrsweep.training.inputs"]._inputs.cache_clear()


@st.composite
def inputs(draw: st.DrawFn, folder: Path) -> tuple[str, list[str], dict[str, bytes]]:
    """Any input: its kind, the arguments, and the files that it changes, with their content."""
    kind = draw(st.integers(0, len(FILES) + 1))
    if kind == 0:
        overrides = draw(st.lists(OVERRIDES, max_size=3))
        return "keys and values", ["+sweep=lora_lr", *overrides, "executor=inline", NO_DATA], {}
    if kind == 1:
        return "arguments", [draw(SUBCOMMANDS), *draw(st.lists(ARGUMENTS, max_size=4))], {}
    name, content, command = FILES[kind - 2]
    good = content(folder) if callable(content) else content
    return name, list(command), {name: draw(broken(good))}
