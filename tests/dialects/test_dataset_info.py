"""LLaMA-Factory's data: each entry's rows become conversations, in its order, as its columns and tags say."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrsweep.errors import InputError, NotFoundError
from lrsweep.training.data.dataset_info import check, entries, open_sets
from lrsweep.training.data.loading import SPLIT_SEED, check_paths
from tests.dialects.examples import put, write_data

TOOL = {"from": "function_call", "value": "f"}


def rows(folder: Path, names: str, first: int | None = None) -> list[Any]:
    opened = open_sets(str(folder), names, "data.name", first, SPLIT_SEED)
    return [row["messages"] for row in opened.read(range(len(opened)))]  # type: ignore[index]


def looked_at(folder: Path, name: str) -> None:
    """As a sweep does: the files first, then their rows."""
    check(str(folder), name, "data.name")
    rows(folder, name)


def said(*pairs: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(pairs)]


def test_alpaca_by_its_default_columns(tmp_path: Path) -> None:
    put(
        tmp_path,
        "d",
        [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Say", "input": "", "output": "a"}],
    )
    assert rows(tmp_path, "d") == [said("Add\n1 2", "3"), said("Say", "a")]


def test_alpaca_with_its_own_columns_system_and_history(tmp_path: Path) -> None:
    row = {"q": "Add", "a": "3", "s": "Be brief", "h": [["Hi", "Hello"]], "input": "not named, so not there"}
    put(tmp_path, "d", [row], columns={"prompt": "q", "response": "a", "system": "s", "history": "h"})
    assert rows(tmp_path, "d") == [[{"role": "system", "content": "Be brief"}, *said("Hi", "Hello", "Add", "3")]]


def test_sharegpt_by_its_default_tags(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    put(tmp_path, "d", [{"conversations": turns}], formatting="sharegpt")
    assert rows(tmp_path, "d") == [[{"role": "system", "content": "S"}, *said("Hi", "Hello")]]


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_turns_with_their_own_tags(tmp_path: Path, formatting: str) -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    put(tmp_path, "d", [{"messages": turns}], formatting=formatting, columns={"messages": "messages"}, tags=tags)
    assert rows(tmp_path, "d") == [[{"role": "system", "content": "S"}, *said("Hi", "Hello")]]


def test_several_sets_end_to_end_the_first_rows_of_each(tmp_path: Path) -> None:
    put(tmp_path, "a", [{"instruction": f"a{n}", "input": "", "output": "x"} for n in range(5)])
    put(tmp_path, "b", [{"instruction": f"b{n}", "input": "", "output": "x"} for n in range(5)])
    found = [row[0]["content"] for row in rows(tmp_path, "b, a", first=2)]
    assert found == ["b0", "b1", "a0", "a1"]


@pytest.mark.parametrize("wanted", [3, 12])
def test_num_samples_draws_each_row_once_before_any_twice(tmp_path: Path, wanted: int) -> None:
    put(tmp_path, "d", [{"instruction": str(n), "input": "", "output": "x"} for n in range(5)], num_samples=wanted)
    found = [row[0]["content"] for row in rows(tmp_path, "d")]
    assert len(found) == wanted
    assert len(set(found)) == min(wanted, 5)
    assert found == [row[0]["content"] for row in rows(tmp_path, "d")], "the same rows every time"


def test_a_folder_of_files_is_one_set(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for n in range(2):
        (tmp_path / "parts" / f"{n}.jsonl").write_text(
            json.dumps({"instruction": str(n), "input": "", "output": "x"}) + "\n"
        )
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "parts"}}))
    assert [row[0]["content"] for row in rows(tmp_path, "d")] == ["0", "1"]


def test_turns_that_do_not_alternate_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    bad = [
        {"conversations": [{"from": "gpt", "value": "b"}]},
        {"conversations": []},
        {"conversations": good["conversations"][:1]},
    ]
    put(tmp_path, "d", [*bad, good], formatting="sharegpt")
    assert rows(tmp_path, "d") == [said("a", "b")]
    assert "dataset d: 3 row(s) left out" in caplog.text


@pytest.mark.parametrize(
    ("entry", "row", "said"),
    [
        ({"ranking": True}, {}, "d.ranking: pairs to rank are no answers to learn; "),
        ({"file_name": "", "ms_hub_url": "x"}, {}, "d.ms_hub_url: lrsweep reads files and the Hugging Face hub; "),
        ({"formatting": "chat"}, {}, "d.formatting: 'chat' is none of alpaca, sharegpt, openai; "),
        ({"columns": {"images": "i"}}, {}, "d.columns.images: trials learn from text alone; "),
        ({"file_name": None}, {}, "d.file_name: missing; "),
        ({"file_name": "none.json"}, {}, "none.json: no such file or folder"),
        (
            {},
            {"instruction": "a", "output": "b"},
            "d.json:1: field 'input' is missing, in every row of d",
        ),
        ({}, {"instruction": "a", "input": 3, "output": "b"}, "d.json:1: "),
        (
            {"columns": {"prompt": "p", "response": "r", "tools": "t"}},
            {"p": "a", "r": "b", "t": "[]"},
            "d.json:1: has tools, ",
        ),
        (
            {"formatting": "sharegpt"},
            {"conversations": [{"from": "human", "value": "a"}, TOOL]},
            "d.json:1: has tool calls, ",
        ),
    ],
)
def test_what_is_no_data_for_this_is_refused_in_one_line(
    tmp_path: Path, entry: dict[str, Any], row: Any, said: str
) -> None:
    put(tmp_path, "d", [row], **entry)
    with pytest.raises(InputError) as refused:
        looked_at(tmp_path, "d")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(InputError, match=r"^data\.name=identiti: no such data set in .* \(there: identity, talks\)$"):
        check(str(tmp_path), "identiti", "data.name")


def test_a_folder_without_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"dataset_info\.json cannot be read: No such file or directory; give the folder"
    ):
        check(str(tmp_path), "d", "data.name")


def test_the_config_key_is_named_where_no_set_is(tmp_path: Path) -> None:
    from lrsweep.config.trial_schema import DataConfig

    write_data(tmp_path)
    with pytest.raises(InputError, match=r"^data\.name: missing; format llamafactory takes the names of data sets"):
        check_paths(DataConfig(path=str(tmp_path), format="llamafactory"))


def test_a_dataset_info_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "dataset_info.json"
    file.write_text(json.dumps({"far": {"hf_hub_url": "org/rows"}, "near": {"file_name": "rows.json"}}))
    asked = []

    def download(repo: str, name: str, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    [entry] = entries("REMOTE:org/info", "far", "data.name")
    assert (entry.on_hub, entry.place) == (True, "org/rows")
    assert asked == [("org/info", "dataset_info.json", "dataset")]
    with pytest.raises(InputError, match=r"near.file_name: only dataset_info.json itself is fetched"):
        entries("REMOTE:org/info", "near", "data.name")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: 1 / 0)
    with pytest.raises(NotFoundError, match="the hub does not give its"):
        entries("REMOTE:org/info", "far", "data.name")
