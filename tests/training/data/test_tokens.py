"""Rows that are tokens already: read, checked, and made by another trainer's own code."""

import json
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from transformers import PreTrainedTokenizerBase

from lrsweep.config.trial_schema import DataConfig, ModelConfig
from lrsweep.errors import InputError
from lrsweep.training.data import trainer_rows
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.loading import FinetuneData, load
from lrsweep.training.model import load_tokenizer

ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8, 9, 10, 11, 12], "labels": [-100, -100, 10, 11, 12]},
    {"input_ids": [13, 14], "labels": None},
]
# A trainer that is installed beside this Python: what `trainer_side` imports of ms-swift, on a few rows. The real one
# is in test_ms_swift.py.
SWIFT = """
import json
from tokenizers import Tokenizer


def tokenizer(text, add_special_tokens):
    whole = Tokenizer.from_file({tokenizer!r} + "/tokenizer.json")
    return {{"input_ids": whole.encode(text, add_special_tokens=add_special_tokens).ids}}


class _Template:
    tokenizer = staticmethod(tokenizer)

    def encode(self, row):
        ids = self.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        more = {{"loss_scale": row.get("weights"), "pixels": row.get("pixels")}}
        return {{"input_ids": ids, "labels": [-100, *ids[1:]], **more}}


class ExportCachedDataset:
    def __init__(self, words):
        self.template = _Template()
        print("words", words)
        open({seen!r}, "a").write(json.dumps(words) + "\\n")
        self.file = words[words.index("--dataset") + 1]

    def _prepare_dataset(self):
        rows = [json.loads(line) for line in open(self.file)]
        held_out = [row for row in rows if row.get("held_out")]
        return [row for row in rows if not row.get("held_out")], held_out or None
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(path="embedded"))


def read(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: list[Any], **more: Any) -> FinetuneData:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"path": str(file), "format": "tokens", "eval_path": str(file.with_name("eval.jsonl")), **more}
    Path(settings["eval_path"]).write_text(json.dumps({"input_ids": [3, 4]}) + "\n")
    return load(DataConfig(**settings), tokenizer)


def test_tokens_are_taken_as_they_are(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    found = read(tmp_path, tokenizer, ROWS)
    assert set(found.train) == {
        Example((5, 6, 7), (IGNORED, 6, 7)),
        Example((8, 9, 10, 11, 12), (IGNORED, IGNORED, 10, 11, 12)),
        Example((13, 14), (IGNORED, 14)),
    }
    assert found.evaluation == (Example((3, 4), (IGNORED, 4)),)


def test_long_rows_are_cut_or_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    cut = read(tmp_path, tokenizer, ROWS, max_length=3)
    assert Example((8, 9, 10), (IGNORED, IGNORED, 10)) in cut.train
    assert (cut.cut, cut.dropped) == (1, 0)
    left_out = read(tmp_path, tokenizer, ROWS, max_length=3, drop_long_rows=True)
    assert (len(left_out.train), left_out.cut, left_out.dropped) == (2, 0, 1)
    # Nothing to learn is left of the longest.
    assert read(tmp_path, tokenizer, ROWS, max_length=2).dropped == 1


def test_columns_may_have_other_names(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"ids": [5, 6], "targets": [-100, 6]}]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    config = DataConfig(path=str(file), format="tokens", columns={"input_ids": "ids", "labels": "targets"})
    assert load(config, tokenizer).train[0] == Example((5, 6), (IGNORED, 6))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "rows.jsonl:2: field 'input_ids' is not a list of token numbers (the row has: text)"),
        ({"input_ids": []}, "rows.jsonl:2: field 'input_ids' is not a list"),
        ({"input_ids": [1, 2.5]}, "rows.jsonl:2: field 'input_ids' is not a list"),
        ({"input_ids": [1, 2], "labels": [-100]}, "rows.jsonl:2: 1 labels for 2 tokens"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "rows.jsonl:2: the label 3 is neither the row's token 2 nor -100"),
        ({"input_ids": [1, 10**6]}, "rows.jsonl:2: the token 1000000 is not one of the tokenizer's"),
        ({"input_ids": [1, -100]}, "rows.jsonl:2: -100 is a label and no token"),
        ({"input_ids": [1, -5]}, "rows.jsonl:2: the token -5 is not one of the tokenizer's"),
        ([1, 2], "rows.jsonl:2: field 'input_ids' is not a list of token numbers (the row has: list)"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Any, said: str) -> None:
    with pytest.raises(InputError) as fault:
        read(tmp_path, tokenizer, [ROWS[0], row])
    assert said in str(fault.value)


def test_rows_without_a_label_are_no_data(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="none of the train rows has a token to learn"):
        read(tmp_path, tokenizer, [{"input_ids": [5, 6], "labels": [-100, -100]}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "text", "tokenized_by": "ms-swift", "trainer_config": {"model": "m"}}, "set data.format=tokens"),
        ({"format": "tokens", "tokenized_by": "ms-swift"}, "give both or neither"),
        ({"format": "tokens", "trainer_config": {"model": "m"}}, "give both or neither"),
    ],
)
def test_keys_that_contradict_each_other(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(path="d", **settings)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that has a package `swift`, in whose folder `seen` tells how often it ran; and a cache of its own."""
    from lrsweep.embedded import BASE

    package = tmp_path / "packages" / "swift" / "pipelines" / "export"
    package.mkdir(parents=True)
    (package / "cached_dataset.py").write_text(SWIFT.format(tokenizer=str(BASE), seen=str(tmp_path / "seen")))
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    # Its own packages are found by a path, as those of a virtual environment are by a file.
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "packages"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    return python


def made(python: Path | None, file: Path, tokenizer: PreTrainedTokenizerBase, **more: Any) -> FinetuneData:
    config = {"model": "m", "dataset": [str(file)], **more}
    own = None if python is None else str(python)
    return load(
        DataConfig(path="rows", format="tokens", tokenized_by="ms-swift", trainer_config=config, python=own), tokenizer
    )


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_trainer_makes_the_rows_once(tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = write(tmp_path / "rows.jsonl", {"text": "one two three"}, {"text": "four five six", "held_out": True})
    first = made(trainer, file, tokenizer, max_length=64, packing=False)
    ids = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    assert [example.input_ids for example in first.train] == [tuple(ids)]
    assert [list(example.labels) for example in first.train] == [[IGNORED, *ids[1:]]]
    assert len(first.evaluation) == 1
    assert made(trainer, file, tokenizer, max_length=64, packing=False) == first
    (words,) = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert words[:4] == ["--model", "m", "--dataset", str(file)]
    assert words[4:8] == ["--max_length", "64", "--packing", "false"]
    # Another state of the file, or another key, is another data set.
    write(
        file, {"text": "seven eight nine ten"}, {"text": "four", "held_out": True}, {"text": "five", "held_out": True}
    )
    assert made(trainer, file, tokenizer, max_length=64, packing=False).train != first.train
    made(trainer, file, tokenizer, max_length=65, packing=False)
    assert len((tmp_path / "seen").read_text().splitlines()) == 3


def test_without_held_out_rows_a_share_is_taken(
    tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    file = write(tmp_path / "rows.jsonl", *({"text": f"number {n} of many"} for n in range(20)))
    found = made(trainer, file, tokenizer)
    assert (len(found.train), len(found.evaluation)) == (18, 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "one two", "weights": [1, 2, 1]}, "loss_scale: tokens have the weights [1, 2]"),
        ({"text": "one two", "pixels": [1]}, "rows have pixels beside their tokens; trials learn from text alone"),
        ({}, "KeyError: 'text'"),
    ],
)
def test_what_the_trainer_cannot_make_is_one_line(
    tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], said: str
) -> None:
    file = write(tmp_path / "rows.jsonl", row)
    for _ in range(2):  # nothing half made is taken for the rows
        with pytest.raises(InputError) as fault:
            made(trainer, file, tokenizer)
        assert str(fault.value).startswith("data.tokenized_by=ms-swift: it cannot make the rows: ")
        assert said in str(fault.value)
        log = Path(str(fault.value).rpartition(" is in ")[2])
        assert "words ['--model', 'm'" in log.read_text()


def test_weights_of_zero_are_not_learned(tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    weights = [1] * (len(ids) - 1) + [0]
    file = write(tmp_path / "rows.jsonl", *[{"text": "one two three", "weights": weights}] * 2)
    assert made(trainer, file, tokenizer).train[0].labels == (IGNORED, *ids[1:-1], IGNORED)


def test_another_models_tokenizer_is_noticed(
    tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "rows.jsonl", *[{"text": "one two three"}] * 3)
    made(trainer, file, tokenizer)
    (sample,) = (tmp_path / "cache" / "rows").glob("*/sample.json")
    kept = json.loads(sample.read_text())
    sample.write_text(json.dumps(kept | {"ids": [1, *kept["ids"]]}))
    with pytest.raises(InputError, match=r"its tokenizer is not that of model\.path"):
        made(trainer, file, tokenizer)


def test_the_trainer_is_looked_for(
    tmp_path: Path, trainer: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "rows.jsonl", *[{"text": "one two three"}] * 3)
    with pytest.raises(InputError, match=r"^data\.python=\S+nothing: no such program"):
        made(tmp_path / "nothing", file, tokenizer)
    monkeypatch.setenv("PATH", str(tmp_path / "links"))
    with pytest.raises(InputError, match=r"^data\.tokenized_by=ms-swift: swift is not on PATH"):
        made(None, file, tokenizer)
    # As pipx installs it: a link to the program in its environment.
    program = trainer.with_name("swift")
    program.write_text("")
    program.chmod(0o755)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "swift").symlink_to(program)
    assert len(made(None, file, tokenizer).train) == 2


def test_rows_are_made_again_when_a_file_changes_that_a_pattern_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("{}\n")
    python = str(Path(sys.executable))
    config = DataConfig(
        path="rows",
        format="tokens",
        tokenized_by="axolotl",
        trainer_config={"datasets": [{"path": "json", "data_files": ["*.jsonl"]}]},
        python=python,
    )
    before = trainer_rows._folder(config)
    assert trainer_rows._folder(config) == before
    Path("b.jsonl").write_text("{}\n")
    assert trainer_rows._folder(config) != before
