"""Axolotl's conversations: what its templates write, and which tokens it learns.

`make interop` compares both with Axolotl's own.
"""

from typing import Any

import pytest
from transformers import AutoTokenizer

from lrsweep.config.trial_schema import DataConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.axolotl_chat import TEMPLATES, write
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.encoding import Encoder
from lrsweep.training.data.formats import BadRowError
from lrsweep.training.data.loading import check_paths
from lrsweep.training.data.reading import TableRows

SYSTEM = {"role": "system", "content": "RULE"}
ASKED = [{"role": "user", "content": " ASK "}, {"role": "assistant", "content": "SAY"}]
TWICE = [*ASKED, {"role": "user", "content": "more"}, {"role": "assistant", "content": "THEN"}]


def written(name: str, messages: list[dict[str, Any]]) -> str:
    return write(name, messages, "<s>", "</s>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(str(BASE))
    found.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    found.chat_template = None
    return found


def encoded(tokenizer: Any, row: dict[str, Any], **data: Any) -> Example:
    config = DataConfig(path="d", format="axolotl", on_bad_row="refuse", **data)
    [example], _, _ = Encoder.of(tokenizer, config).encode(TableRows("rows", [row]), [0], "train")
    return example


def learned(tokenizer: Any, row: dict[str, Any], **data: Any) -> str:
    example = encoded(tokenizer, row, **data)
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_writes_what_is_said_once(name: str) -> None:
    text = written(name, [*([SYSTEM] if TEMPLATES[name].system else []), *TWICE])
    parts = ["RULE", "ASK", "SAY", "more", "THEN"][TEMPLATES[name].system is None :]
    assert [text.count(part) for part in parts] == [1] * len(parts)
    assert sorted(parts, key=text.index) == parts
    assert not any(mark in text for mark in ("<bos>", "<eos>", "{}", "{role}"))


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("chatml", ASKED, "<|im_start|>user\n ASK <|im_end|>\n<|im_start|>assistant\nSAY<|im_end|>\n"),
        (
            "llama3",
            ASKED,
            "<s><|start_header_id|>user<|end_header_id|>\n\nASK<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nSAY<|eot_id|>",
        ),
        (
            "gemma3",
            [SYSTEM, *ASKED],
            "<s><start_of_turn>user\nRULE\n\nASK<end_of_turn>\n<start_of_turn>model\nSAY<end_of_turn>\n",
        ),
        ("phi_3", ASKED, "<s><|user|>\n ASK <|end|>\n<|assistant|>\nSAY<|end|>\n"),
        ("alpaca", [SYSTEM, *ASKED], "<s>RULE\n\n### Instruction:\n ASK \n\n### Response:\nSAY</s>"),
        ("falcon_h1", [ASKED[0], SYSTEM], "<s><|im_start|>user\n ASK <|im_end|>\n"),
        ("chatml", [ASKED[0], SYSTEM], "<|im_start|>user\n ASK <|im_end|>\n<|im_start|>system\nRULE<|im_end|>\n"),
        ("phi_35", [{"role": "system", "content": ""}, ASKED[0]], "<|user|>\n ASK <|end|>\n"),
    ],
)
def test_the_text_is_the_templates(name: str, messages: list[dict[str, Any]], text: str) -> None:
    assert written(name, messages) == text


def test_what_is_said_is_not_taken_for_a_place_in_the_template() -> None:
    said = [{"role": "user", "content": "{role} {} <eos>"}]
    assert written("alpaca", said) == "<s>### Instruction:\n{role} {} <eos>"


def test_only_the_last_answer_has_a_thought() -> None:
    thought = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nSAY"}
    assert written("qwen3", [ASKED[0], thought]).endswith("<think>\nwhy\n</think>\n\nSAY<|im_end|>\n")
    assert written("qwen3", ASKED).endswith("assistant\n<think>\n\n</think>\n\nSAY<|im_end|>\n")
    assert "why" not in written("qwen3", [ASKED[0], thought, *ASKED])
    assert written("qwen3", [*ASKED, ASKED[1]]).count("<think>") == 1, "of two answers in a row, the last"
    apart = {"role": "assistant", "content": "SAY", "reasoning_content": "why"}
    assert written("qwen3", [ASKED[0], apart]) == written("qwen3", [ASKED[0], thought])


@pytest.mark.parametrize(
    ("name", "messages", "why"),
    [
        ("gemma", [SYSTEM, *ASKED], "data.template=gemma refuses a system message"),
        ("cohere", [*ASKED, ASKED[1]], "data.template=cohere refuses roles that do not alternate"),
        ("chatml", [*ASKED, {"role": "tool", "content": "4"}], "and not for tools or tool; use your trainer's own "),
        ("chatml", [ASKED[0], ASKED[1] | {"tool_calls": [{}]}], "and not for tools or assistant"),
    ],
)
def test_messages_that_the_template_refuses_are_bad_rows(name: str, messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(BadRowError, match=why):
        written(name, messages)


def test_answers_are_learned_and_the_eos_token_that_ends_them(tokenizer: Any) -> None:
    row = {"messages": TWICE}
    assert learned(tokenizer, row, template="chatml") == "SAYTHEN", "<|im_end|> is not this tokenizer's EOS"
    tokenizer.eos_token, before = "<|im_end|>", tokenizer.eos_token
    try:
        assert learned(tokenizer, row, template="chatml") == "SAY<|im_end|>THEN<|im_end|>"
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{{ eos_token }}{% endfor %}"
        assert learned(tokenizer, row) == "SAY<|im_end|>THEN<|im_end|>", "the bar is the template's"
        fallback = learned(tokenizer, row, template="tokenizer_default_fallback_llama3")
        assert fallback == "SAY<|im_end|>THEN<|im_end|>"
        tokenizer.chat_template = None
        assert "<|eot_id|>" in tokenizer.decode(
            encoded(tokenizer, row, template="tokenizer_default_fallback_llama3").input_ids
        )
    finally:
        tokenizer.eos_token, tokenizer.chat_template = before, None


def test_columns_roles_and_parts_are_read(tokenizer: Any) -> None:
    plain = encoded(tokenizer, {"messages": [SYSTEM, *ASKED]}, template="chatml")
    talk = [{"from": "human", "value": " ASK "}, {"from": "gpt", "value": [{"type": "text", "text": "SAY"}]}]
    columns = {"messages": "talk", "role": "from", "content": "value"}
    assert encoded(tokenizer, {"talk": talk, "system": "RULE"}, template="chatml", columns=columns) == plain


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no 'role'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no 'content'"),
        ({"messages": ["x"]}, r"messages\[0\] must be an object, not str"),
        ({"messages": [ASKED[0]]}, "no message of the assistant to learn"),
        ({"messages": ASKED, "tools": [{}]}, "data.template=chatml: a row with tools needs the tokenizer's own"),
    ],
)
def test_bad_rows_are_named(tokenizer: Any, row: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        encoded(tokenizer, row, template="chatml")


def test_a_conversation_needs_a_template(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"^data\.format=axolotl: conversations need a chat template"):
        encoded(tokenizer, {"messages": ASKED})
    with pytest.raises(InputError, match=r"^data\.template=nonsense: lrsweep does not know what it writes"):
        encoded(tokenizer, {"messages": ASKED}, template="nonsense")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"template": "nonsense"}, r"data\.template=nonsense: lrsweep does not know"),
        ({"train_on_prompt": True}, r"data\.train_on_prompt=true: format axolotl"),
    ],
)
def test_what_the_format_does_not_do_is_refused_before_anything_is_loaded(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        check_paths(DataConfig(path="nowhere.jsonl", format="axolotl", **data))
