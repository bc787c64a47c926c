"""`--base`: the user's file with the tuned keys changed; every other byte stays."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep import dialects
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects import json_editor
from lrsweep.dialects.file_editor import edited, with_changes
from lrsweep.dialects.importer import from_tree
from lrsweep.dialects.mapping import changed
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from tests.dialects.examples import AXOLOTL, EXAMPLES, LLAMAFACTORY_LORA, TRANSFORMERS

HEADER = "# The best of the lrsweep sweep mine: optimizer.lr=3e-05\n# Eval loss 1.0000 after 9 steps, trial 1 of 2.\n"


def best_of(dialect: str, text: str, changes: dict[str, Any]) -> SweepConfig:
    return replace(from_tree(dialects.TRAINERS[dialect], load_yaml(text, "f"), "f").config, changes)


def export(
    tmp_path: Path, dialect: str, text: str, changes: dict[str, Any], version: tuple[int, int] | None = None
) -> str:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode())
    return edited(dialects.TRAINERS[dialect], file, best_of(dialect, text, changes), set(changes), version, HEADER)


@pytest.mark.parametrize(("dialect", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_only_the_learning_rates_line_changes(tmp_path: Path, dialect: str, text: str) -> None:
    before, after = text.splitlines(), export(tmp_path, dialect, text, {"optimizer.lr": 3e-5}).splitlines()
    assert after[:2] == HEADER.splitlines()
    different = [(old, new) for old, new in zip(before, after[2:], strict=True) if old != new]
    assert [new for _, new in different] == ["learning_rate: 3.0e-05"]


@pytest.mark.parametrize("dialect", [name for name in dialects.TRAINERS if name in dict(EXAMPLES)])
def test_a_best_that_was_the_files_own_is_written_so_that_pyyaml_reads_it(tmp_path: Path, dialect: str) -> None:
    text = dict(EXAMPLES)[dialect]
    lr = next(line for line in text.splitlines() if line.startswith("learning_rate:"))
    text = text.replace(lr, "learning_rate: 1e-3  # a guess")
    assert yaml.safe_load(text)["learning_rate"] == "1e-3"
    after = export(tmp_path, dialect, text, {"optimizer.lr": 1e-3})
    assert after == HEADER + text.replace("1e-3", "0.001")


@pytest.mark.parametrize(
    ("dialect", "text", "changes", "expected"),
    [
        ("transformers", TRANSFORMERS, {"optimizer.betas": [0.8, 0.95]}, {"adam_beta1": 0.8}),
        ("axolotl", AXOLOTL, {"finetune.r": 8}, {"lora_r": 8}),
        (
            "llamafactory",
            LLAMAFACTORY_LORA,
            {"finetune.r": 8, "finetune.alpha": 32.0},
            {"lora_rank": 8, "lora_alpha": 32},
        ),
        ("llamafactory", LLAMAFACTORY_LORA, {"finetune.r": 8, "finetune.alpha": 16.0}, {"lora_rank": 8}),
        ("axolotl", AXOLOTL, {"scheduler.name": "linear"}, {"lr_scheduler": "linear"}),
    ],
)
def test_a_tuned_keys_neighbours_in_the_table_stay(
    tmp_path: Path, dialect: str, text: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = load_yaml(export(tmp_path, dialect, text, changes), "x")
    assert found == load_yaml(text, "x") | expected


def test_nothing_changes_where_the_file_says_it_already(tmp_path: Path) -> None:
    assert export(tmp_path, "llamafactory", LLAMAFACTORY_LORA, {"optimizer.lr": 1e-4}) == HEADER + LLAMAFACTORY_LORA


def test_new_keys_stand_beside_the_learning_rate_and_defaults_are_not_spelled_out(tmp_path: Path) -> None:
    out = export(tmp_path, "llamafactory", LLAMAFACTORY_LORA, {"optimizer.lr": 3e-5, "optimizer.betas": [0.9, 0.95]})
    assert "learning_rate: 3.0e-05\nadam_beta2: 0.95\nnum_train_epochs" in out
    assert "adam_beta1" not in out


def test_one_way_to_say_warmup_replaces_the_other(tmp_path: Path) -> None:
    changes = {"scheduler.warmup_steps": 20, "scheduler.warmup_ratio": None}
    out = export(tmp_path, "llamafactory", LLAMAFACTORY_LORA, changes)
    assert "warmup_ratio" not in out.removeprefix(HEADER)
    assert load_yaml(out, "x")["warmup_steps"] == 20


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (None, {"warmup_steps": 0.05}),
        ((5, 15), {"warmup_steps": 0.05}),
        ((5, 14), {"warmup_ratio": 0.05}),
        ((4, 57), {"warmup_ratio": 0.05}),
    ],
)
def test_warmup_as_the_version_has_it(
    tmp_path: Path, version: tuple[int, int] | None, expected: dict[str, float]
) -> None:
    out = load_yaml(export(tmp_path, "transformers", TRANSFORMERS, {"scheduler.warmup_ratio": 0.05}, version), "x")
    assert {key: value for key, value in out.items() if key.startswith("warmup")} == expected


def test_a_block_of_lines_becomes_one_and_its_comments_neighbours_stay(tmp_path: Path) -> None:
    changes = {"finetune.target_modules": ["k_proj"], "finetune.r": 8}
    out = export(tmp_path, "axolotl", AXOLOTL, changes)
    assert "lora_r: 8\nlora_alpha: 16\nlora_dropout: 0.05\nlora_target_modules: [k_proj]\n\nsequence_len: 2048\n" in out


def test_what_the_trials_did_not_share_is_said(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(LLAMAFACTORY_LORA.replace("per_device_train_batch_size: 2", "per_device_train_batch_size: 16"))
    best = best_of("llamafactory", LLAMAFACTORY_LORA, {"optimizer.lr": 3e-5})
    out = edited(dialects.TRAINERS["llamafactory"], file, best, {"optimizer.lr"}, None, HEADER)
    assert "# This file trains differently from the trials: per_device_train_batch_size=16.\n" in out
    file.write_text(out)
    again = edited(dialects.TRAINERS["llamafactory"], file, best, {"optimizer.lr"}, None, HEADER)
    assert again == out, "a second export replaces the first one's header"


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ("a:\nb: 1\n", {"a": 2}, "a: 2\nb: 1\n"),
        ("a: 'x' # c\n", {"a": "yes"}, "a: 'yes' # c\n"),
        ("a: {b: 1} # c\n", {"a": {"b": 2.5e-9}}, "a: {b: 2.5e-09} # c\n"),
        ("a:\n  b: 1\n  c: 2 # d\n# e\nf: 3\n", {"a": {"b": 2}}, "a: {b: 2} # d\n# e\nf: 3\n"),
        ("a: 1\r\nb: 2\r\n", {"a": 3}, "a: 3\r\nb: 2\r\n"),
        ("a: 1\nb: 2", {"c": 3}, "a: 1\nb: 2\nc: 3\n"),
        ("a: 1\nb: 2\n", {"a": None}, "b: 2\n"),
        ("a: 1\nb: 2\n", {"b": None, "c": 3}, "a: 1\nc: 3\n"),
        ("learning_rate: 1\nb: 2\n", {"c": True}, "learning_rate: 1\nc: true\nb: 2\n"),
        ("---\na: 1 # \u00e9\nb: 2\n", {"b": 3}, "---\na: 1 # \u00e9\nb: 3\n"),
        ("a: 1\r\nb: 2\r\n", {"a": 3, "c": 4}, "a: 3\r\nc: 4\r\nb: 2\r\n"),
        ("%YAML 1.1\n---\na: 1\n...\n", {"c": 3}, "%YAML 1.1\n---\na: 1\nc: 3\n...\n"),
        ("  a: 1\n  b: 2\n", {"c": 3}, "  a: 1\n  b: 2\n  c: 3\n"),
        ("x: &r 1\na: *r # c\n", {"a": 2}, "x: &r 1\na: 2 # c\n"),
        ("x: &r {a: 1}\n<<: *r\nb: 2\n", {"a": 3}, "x: &r {a: 1}\n<<: *r\nb: 2\na: 3\n"),
        ("a: |\n  b\n  c\n\nd: 1\n", {"a": "e", "f": 2}, "a: e\nf: 2\n\nd: 1\n"),
        ("a: # why\nb: 1\n", {"a": 2}, "a: 2 # why\nb: 1\n"),
        ("{a: 1, b: {c: 2}} # d\n", {"b": 3}, "{a: 1, b: 3} # d\n"),
    ],
)
def test_places_in_the_text(before: str, changes: dict[str, Any], after: str) -> None:
    assert with_changes(before, changes) == after


@pytest.mark.parametrize("text", ["learning_rate: &r 1e-4\nlogging_steps: *r\n", "{learning_rate: 1e-4}\n"])
def test_what_cannot_be_changed_alone_is_refused(tmp_path: Path, text: str) -> None:
    changes = {"optimizer.lr": 3e-5, "optimizer.weight_decay": 0.5}
    with pytest.raises(
        InputError, match=r"mine\.yaml: learning_rate, weight_decay cannot be changed without touching other keys"
    ) as refused:
        export(tmp_path, "transformers", text, changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "learning_rate: 1e-4\n---\nseed: 1\n", r"a\.yaml:2: not valid YAML: but found another document"),
        ("a.json", '{"learning_rate": 1e-4,}\n', r"a\.json:1: not valid JSON: "),
        ("a.json", '{"seed": 1, "seed": 2}\n', r"a\.json: seed is given twice"),
        ("a.yaml", "learning_rate:\t1e-4\n", r"a\.yaml:1: a tab, which YAML does not take there; write spaces"),
    ],
)
def test_a_file_that_cannot_be_a_base_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    best = best_of("transformers", TRANSFORMERS, {"optimizer.lr": 3e-5})
    with pytest.raises(InputError, match=said):
        edited(dialects.TRAINERS["transformers"], tmp_path / name, best, {"optimizer.lr"}, None, HEADER)


def test_line_ends_are_the_files_own(tmp_path: Path) -> None:
    out = export(tmp_path, "llamafactory", LLAMAFACTORY_LORA.replace("\n", "\r\n"), {"optimizer.betas": [0.8, 0.95]})
    assert out.count("\n") == out.count("\r\n") == (HEADER + LLAMAFACTORY_LORA).count("\n") + 2


# One key, K, as people and programs write it.
_STYLES = (
    "K: 1e-4",
    "K:   1.0e-4   # why",
    "K: 'x: y'",
    'K: "a # b"',
    "K: [1,\n  2] # two",
    "K: {b: 1, c: {d: 2}}",
    "K:",
    "'K' : 2",
    "K:\n  b: 1 # in\n  c: 2",
    "K:\n- a\n- b # last",
    "K:\n  - a: 1\n    b: 2",
    "K: |\n  text\n\n  more",
    "K: >-\n  folded",
    "K: # none",
    "K: &K 3",
    "K: !!float 3",
    "K: a long\n  plain text",
    "K: \u00e9 \U0001f600",
    "K: *anchor",
    "K:\n  c: *anchor",
)
_VALUES = st.sampled_from([3e-5, 0.8, "cosine", "yes", True, ["q_proj", "v_proj"], {"min_lr_rate": 0.1}, 7])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_the_layout_all_else_stays(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    parts = ["anchor: &anchor 0.5", *(data.draw(st.sampled_from(_STYLES)).replace("K", name) for name in names)]
    between = st.sampled_from(["", "\n", "# b: 1\n", "\n# c: 2\n\n"])
    gaps = [data.draw(between) for _ in parts]
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    text = data.draw(st.sampled_from(["", "---\n"])) + "".join(
        f"{part}\n{gap}" for part, gap in zip(parts, gaps, strict=True)
    )
    text = (text if data.draw(st.booleans()) else text.rstrip("\n")).replace("\n", newline)
    keys = st.sampled_from(["a", "b", "c", "learning_rate", "seed"])
    changes = data.draw(st.dictionaries(keys, _VALUES | st.none(), min_size=1))
    changes = {name: value for name, value in changes.items() if value is not None or name in names}

    out = with_changes(text, changes)
    assert load_yaml(out, "out") == changed(load_yaml(text, "text"), changes)
    left = [part for name, part in zip(["anchor", *names], parts, strict=True) if name not in changes]
    comments = [line for gap in gaps for line in gap.split("\n") if line]
    place = 0
    for part in left:
        place = ("\n" + out).find("\n" + part.replace("\n", newline), place) + 1
        assert place > 0, part
    assert [line for line in out.split(newline) if line.startswith("#")] == comments
    assert out.count("\n") == out.count(newline), "one kind of line ends"


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ('{"lr": 1e-4, "seed": 1}', {"lr": 2e-5}, '{"lr": 2e-05, "seed": 1}'),
        (
            '{\n\t"a": [1,  2],\n\t"lr": "1e-4"\n}\n',
            {"lr": 0.5, "b": True},
            '{\n\t"a": [1,  2],\n\t"lr": 0.5,\n\t"b": true\n}\n',
        ),
        ('{"a": {"lr": 1}, "lr": 1}', {"lr": 2}, '{"a": {"lr": 1}, "lr": 2}'),
        ('{"a": "x, \\"lr\\": 3", "b": 1}', {"b": None}, '{"a": "x, \\"lr\\": 3"}'),
        ('{"b": 1 , "a": 2}', {"b": None}, '{"a": 2}'),
        ('{"模型": "m", "lr": 1}', {"lr": 3}, '{"模型": "m", "lr": 3}'),
    ],
)
def test_json_is_changed_in_place(before: str, changes: dict[str, Any], after: str) -> None:
    assert json_editor.with_changes(before, changes) == after
    json.loads(after)


@pytest.mark.parametrize(("dialect", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_a_json_base_is_exported_as_json(tmp_path: Path, dialect: str, example: str) -> None:
    file = tmp_path / "mine.json"
    mine = {"learning_rate": 1e-4, "seed": 3}
    file.write_text(json.dumps(mine, indent=2))
    best = best_of(dialect, example, {"optimizer.lr": 3e-5})
    text = edited(dialects.TRAINERS[dialect], file, best, {"optimizer.lr"}, None, "# header\n")
    assert json.loads(text) == mine | {"learning_rate": 3e-5}
    assert text.count("\n") == file.read_text().count("\n")
