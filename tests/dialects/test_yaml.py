"""What is written reads the same in PyYAML (YAML 1.1), in OmegaConf and in our own reader."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lrsweep.dialects.file_editor import read, with_changes
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml

READERS: dict[str, Callable[[str], Any]] = {
    "PyYAML": yaml.safe_load,
    "lrsweep": lambda text: load_yaml(text, "x"),
    "OmegaConf": lambda text: OmegaConf.to_container(OmegaConf.create(text)),
}
MISREAD = [
    "yes",
    "No",
    "ON",
    "off",
    "y",
    "N",
    "true",
    "False",
    "null",
    "~",
    "",
    "1_000",
    "0o7",
    "0x1F",
    "0b1",
    "017",
    "1:30",
    "190:20:30.15",
    "2024-01-01",
    "2001-12-14t21:59:43.10-05:00",
    "1e5",
    "1e-05",
    "1.0e-5",
    ".5",
    "-.inf",
    ".nan",
    "inf",
    "+1",
    "1,000",
    "=",
    "<<",
    "- a",
    "a: b",
    "a # b",
    "'",
    '"',
    "*x",
    "&x",
    "!t",
    "%d",
    "@d",
    "`d",
    "[",
    "{",
    "  lead",
    "trail ",
    "a\nb",
    "\u00e9",
    "a\tb",
]


def in_order(numbers: int) -> float:
    """A float by its bits: all of them, evenly over the exponents."""
    value: float = struct.unpack("d", struct.pack("Q", numbers))[0]
    return value


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False) | st.integers(0, 2**64 - 1).map(in_order).filter(lambda value: value == value))
def test_every_float_is_a_number_to_every_reader(value: float) -> None:
    text = to_yaml({"x": value, "list": [value], "within": {"x": value}})
    for name in ("PyYAML", "lrsweep"):
        found = READERS[name](text)
        for read_back in (found["x"], found["list"][0], found["within"]["x"]):
            assert isinstance(read_back, float), (name, text)
            assert read_back == value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_omegaconf_reads_the_same_floats(value: float) -> None:
    assert READERS["OmegaConf"](to_yaml({"x": value})) == {"x": value}


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_put_into_a_file_is_a_number(value: float) -> None:
    text = with_changes("a: 1\nlearning_rate: 1e-4 # mine\nb: 'yes'\n", {"learning_rate": value})
    assert yaml.safe_load(text) == {"a": 1, "learning_rate": value, "b": "yes"}
    assert " # mine\n" in text


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", MISREAD)
def test_a_text_stays_a_text(text: str, reader: str) -> None:
    assert READERS[reader](to_yaml({"x": text, "y": [text]})) == {"x": text, "y": [text]}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
    | st.from_regex(r"[-+0-9._:eEx]{1,8}", fullmatch=True)
)
def test_any_text_stays_a_text(text: str) -> None:
    for name in ("PyYAML", "lrsweep"):
        assert READERS[name](to_yaml({"x": text})) == {"x": text}


def test_numbers_are_read_as_the_tools_read_them() -> None:
    tree = load_yaml("a: 1e-4\nb: 5E-5\nc: 3\nd: 1.0\ne: '1e-4'\nf: 2024-01-01\n", "x")
    assert tree == {"a": 1e-4, "b": 5e-5, "c": 3, "d": 1.0, "e": "1e-4", "f": "2024-01-01"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1\n", "f.yaml:2: not valid YAML: "),
        (b"a: 1\nlr: 2\na: 3\n", "f.yaml:3: not valid YAML: a is given twice"),
        (b"- a\n", "f.yaml: a config is a mapping of keys to values; give such a file"),
        (b"", "f.yaml: a config is a mapping"),
        (b"\xff\xfe", "f.yaml: cannot be read: not UTF-8; give a YAML or JSON file"),
        (None, "f.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("f.yaml").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read(Path("f.yaml"))
    assert str(refused.value).startswith(said), refused.value
    assert "\n" not in str(refused.value)


def test_an_export_never_has_yaml_aliases() -> None:
    shared: list[Any] = [1, 2]
    assert "&" not in to_yaml({"a": shared, "b": shared})
