"""Rows of each format become the same two forms; a bad one says what is wrong with it."""

from typing import Any

import pytest

from lrsweep.errors import InputError
from lrsweep.training.data.formats import BadRowError, Chat, Plain, check_columns, parse


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def form(row: object, row_format: Any, columns: dict[str, str] | None = None, template: bool = True) -> Chat | Plain:
    return parse(row, row_format, columns or {}, has_template=template)


def test_alpaca_with_a_template_is_a_conversation() -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief", "history": [["Hi", "Hello"]]}
    assert form(row, "alpaca") == Chat(
        (
            turn("system", "Be brief"),
            turn("user", "Hi"),
            turn("assistant", "Hello"),
            turn("user", "Add\n1 2"),
            turn("assistant", "3"),
        ),
        context=1,
    )


@pytest.mark.parametrize("empty", [{}, {"input": "", "history": []}, {"input": None, "system": None, "history": None}])
def test_alpaca_without_a_template_is_a_plain_prompt(empty: dict[str, Any]) -> None:
    row = {"instruction": "Add", "output": "3"} | empty
    assert form(row, "alpaca", template=False) == Plain("Add\n", "3")
    assert form(row | {"input": "1 2", "system": "S"}, "alpaca", template=False) == Plain("S\nAdd\n1 2\n", "3")


def test_alpaca_history_needs_a_template() -> None:
    row = {"instruction": "Add", "output": "3", "history": [["Hi", "Hello"]]}
    with pytest.raises(BadRowError, match="'history' has earlier turns and this tokenizer has no chat template"):
        form(row, "alpaca", template=False)


def test_sharegpt_roles_and_system() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    expected = (turn("user", "Hi"), turn("assistant", "Hello"))
    assert form({"conversations": turns}, "sharegpt") == Chat(expected, 1)
    assert form({"conversations": turns, "system": "S"}, "sharegpt") == Chat((turn("system", "S"), *expected), 1)


def test_messages_keep_what_a_template_may_read() -> None:
    answer = {"role": "assistant", "content": "3", "reasoning_content": "1 and 2", "tool_calls": None}
    assert form({"messages": [turn("user", "Add"), answer]}, "messages") == Chat(
        (turn("user", "Add"), turn("assistant", "3") | {"reasoning_content": "1 and 2"}), 1
    )


def test_prompt_completion_of_strings_is_plain_whatever_the_tokenizer() -> None:
    for template in (True, False):
        assert form({"prompt": "", "completion": "b"}, "prompt_completion", template=template) == Plain("", "b")


def test_prompt_completion_of_messages_learns_the_completion_only() -> None:
    before = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Add")]
    row = {"prompt": before, "completion": [turn("assistant", "3")]}
    assert form(row, "prompt_completion") == Chat((*before, turn("assistant", "3")), context=3)
    with pytest.raises(BadRowError, match="no chat template; use plain strings"):
        form(row, "prompt_completion", template=False)


def test_columns_rename_and_are_named_in_errors() -> None:
    columns = {"instruction": "question", "output": "answer"}
    assert form({"question": "Add", "answer": "3"}, "alpaca", columns, template=False) == Plain("Add\n", "3")
    with pytest.raises(BadRowError, match=r"field 'answer' is missing \(the row has: question, output\)"):
        form({"question": "Add", "output": "3"}, "alpaca", columns)


def test_unknown_field_in_columns_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(
        InputError, match=r"^data\.columns\.instrution: format alpaca has no such field; valid: instruction, "
    ):
        check_columns("alpaca", {"instrution": "question"})


BAD: list[tuple[str, Any, str]] = [
    ("alpaca", [], "a row must be an object with named fields, not list"),
    ("alpaca", None, "a row must be an object with named fields, not null"),
    ("alpaca", {}, "field 'instruction' is missing (the row has: no fields)"),
    ("alpaca", {"instruction": "a", "output": None}, "field 'output' is null"),
    ("alpaca", {"instruction": "a", "output": 3}, "field 'output' must be a string, not int"),
    ("alpaca", {"instruction": "a", "output": " \n"}, "field 'output' is empty, so there is nothing to learn"),
    ("alpaca", {"instruction": "", "output": "a"}, "field 'instruction' is empty"),
    ("alpaca", {"instruction": "a", "input": 1, "output": "b"}, "field 'input' must be a string, not int"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [["q"]]}, "history[0] must be a pair [question, answer]"),
    ("sharegpt", {"conversations": "hi"}, "field 'conversations' must be a list, not str"),
    ("sharegpt", {"conversations": []}, "field 'conversations' is an empty list"),
    ("sharegpt", {"conversations": ["hi"]}, "conversations[0] must be an object, not str"),
    ("sharegpt", {"conversations": [{"value": "a"}]}, "conversations[0] has no 'from'"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "conversations[0] has no 'value'"),
    (
        "sharegpt",
        {"conversations": [{"from": "bot", "value": "a"}]},
        "conversations[0].from is 'bot', an unknown role; known: human, user, gpt, assistant, model, system",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": ["gpt"], "value": "a"}]},
        "conversations[0].from is ['gpt'], an unknown role; known: human, user, gpt, assistant, model, system",
    ),
    ("messages", {"messages": [turn("user", "a")]}, "no assistant turn to learn (one that follows another message)"),
    (
        "messages",
        {"messages": [turn("assistant", "a")]},
        "no assistant turn to learn (one that follows another message)",
    ),
    (
        "messages",
        {"messages": [turn("user", "a"), turn("assistant", "")]},
        "field 'messages[1].content' is empty, so there is nothing to learn",
    ),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "field 'messages[0].content' is null"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "field 'messages[0].content[0]' is of type image; trials learn from text alone",
    ),
    ("prompt_completion", {"prompt": "a", "completion": []}, "field 'prompt' must be a list, not str"),
    (
        "prompt_completion",
        {"prompt": "a", "completion": ""},
        "field 'completion' is empty, so there is nothing to learn",
    ),
    ("text", {"text": ""}, "field 'text' is empty, so there is nothing to learn"),
    ("text", {"text": "\ud800"}, "field 'text' has a broken unicode escape (half a surrogate pair)"),
]


@pytest.mark.parametrize(("row_format", "row", "reason"), BAD)
def test_bad_rows(row_format: Any, row: object, reason: str) -> None:
    with pytest.raises(BadRowError) as fault:
        form(row, row_format)
    assert str(fault.value) == reason
