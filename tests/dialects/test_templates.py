"""LLaMA-Factory's templates: what they write, how it is tokenised, and what of it is learned."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from lrsweep.config.trial_schema import DataConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.chat_templates import TEMPLATES, check, pieces
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.encoding import Encoder
from lrsweep.training.data.reading import TableRows
from tests.training.data.test_loading import tokenizer_with

TALK = [
    {"role": "system", "content": "RULE"},
    {"role": "user", "content": "ASK"},
    {"role": "assistant", "content": "SAY"},
]
CHATML = ["<|im_start|>system\nRULE<|im_end|>\n", "<|im_start|>user\nASK<|im_end|>\n<|im_start|>assistant\n"]
SAID = "SAY<|im_end|>\n"
STOPS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(str(BASE))
    found.add_tokens(STOPS, special_tokens=True)
    found.chat_template = None
    return found


def encoded(tokenizer: Any, template: str, messages: list[dict[str, str]], **data: Any) -> Example:
    config = DataConfig(path="d", format="llamafactory", name="d", template=template, **data)
    rows = TableRows("rows", [{"messages": messages}])
    [example], _, _ = Encoder.of(tokenizer, config).encode(rows, [0], "train")
    return example


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_writes_what_is_said_once(name: str) -> None:
    found = pieces(name, TALK, "<s>", "</s>")
    written = "".join(piece for piece, _ in found)
    assert [written.count(part) for part in ("RULE", "ASK", "SAY")] == [1, 1, 1]
    assert written.index("RULE") < written.index("ASK") < written.index("SAY")
    assert not any(mark in written for mark in ("<bos>", "<eos>", "{}"))
    assert "SAY" in "".join(piece for piece, answers in found if answers)
    assert "ASK" not in "".join(piece for piece, answers in found if answers)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", [*CHATML, SAID]),
        ("qwen3_nothink", [*CHATML, SAID]),
        ("qwen3_5", [*CHATML, "<think>\n\n</think>\n\n", SAID]),
        ("llama2", ["<s>", "[INST] <<SYS>>\nRULE\n<</SYS>>\n\nASK [/INST]", "SAY", "</s>"]),
        ("default", ["System: RULE", "</s>", "\n", "Human: ASK", "</s>", "\nAssistant:", "SAY", "</s>", "\n"]),
    ],
)
def test_the_pieces_are_those_that_llamafactory_tokenises(name: str, written: list[str]) -> None:
    assert [piece for piece, _ in pieces(name, TALK, "<s>", "</s>")] == written


def test_the_default_system_message_stands_in_for_none() -> None:
    for talk in (TALK[1:], [{"role": "system", "content": ""}, *TALK[1:]]):
        assert pieces("qwen", talk, "", "")[0][0].startswith("<|im_start|>system\nYou are Qwen")
    assert len(pieces("chatml", TALK[1:], "", "")) == 2


def test_a_thought_is_not_added_twice() -> None:
    thought = [*TALK[:2], {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nSAY"}]
    assert [piece for piece, _ in pieces("qwen3", thought, "", "")][-1] == "<think>\nwhy\n</think>\n\n" + SAID


@pytest.mark.parametrize("name", ["chatml", "qwen3", "default", "vicuna", "mistral"])
def test_answers_are_learned_and_nothing_else(tokenizer: Any, name: str) -> None:
    talk = [*TALK, {"role": "user", "content": " more?"}, {"role": "assistant", "content": " Yes."}]
    found = pieces(name, talk, tokenizer.bos_token or "", tokenizer.eos_token or "")
    each = [(tokenizer(piece, add_special_tokens=False)["input_ids"], answers) for piece, answers in found]
    ids = [token for tokens, _ in each for token in tokens]
    labels = [token if answers else IGNORED for tokens, answers in each for token in tokens]
    assert encoded(tokenizer, name, talk) == Example(tuple(ids), tuple(labels))
    assert encoded(tokenizer, name, talk, train_on_prompt=True).labels[1:] == tuple(ids[1:])


def test_pieces_are_tokenised_one_by_one() -> None:
    spaced = tokenizer_with(opens_with_bos=False)
    example = encoded(spaced, "default", TALK)
    whole = spaced("".join(piece for piece, _ in pieces("default", TALK, spaced.bos_token, spaced.eos_token)))
    assert spaced.decode(example.input_ids) == spaced.decode(whole["input_ids"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "llama3",
            r"data\.template=llama3: this model's tokenizer has no token <\|eot_id\|>, which LLaMA-Factory would",
        ),
        ("nonsense", r"template=nonsense: lrsweep does not know what it writes \(it knows empty, default, "),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tokenizer: Any, name: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}") as refused:
        check(name, tokenizer)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=f"^{said}"):
        Encoder.of(tokenizer, DataConfig(path="nowhere", format="llamafactory", name="d", template=name))
