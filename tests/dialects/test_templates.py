"""LLaMA-Factory's templates: accepted where the tokenizer's writes the same, else refused with the difference."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from lrsweep.config.trial_schema import DataConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.chat_templates import TEMPLATES, check, text
from lrsweep.training.data.encoding import Encoder

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(BASE))


@pytest.mark.parametrize(
    ("name", "template"), [("chatml", CHATML), ("yi", CHATML), ("qwen3_nothink", CHATML), ("qwen", QWEN)]
)
def test_a_template_that_agrees_is_taken(tokenizer: Any, name: str, template: str) -> None:
    check(name, tokenizer, template)


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        (
            "qwen",
            CHATML,
            r"data\.template=qwen: LLaMA-Factory writes .*system.* where the tokenizer's chat template writes .*user",
        ),
        ("llama3", CHATML, r"data\.template=llama3: LLaMA-Factory writes '.*start_header_id.*' where .*im_start"),
        (
            "default",
            None,
            r"data\.template=default: this model's tokenizer has no chat template that could agree with it; ",
        ),
        ("nonsense", CHATML, r"template=nonsense: lrsweep does not know what it writes \(it knows empty, default, "),
    ],
)
def test_one_that_does_not_is_refused_with_the_reason(
    tokenizer: Any, name: str, template: str | None, said: str
) -> None:
    with pytest.raises(InputError, match=f"^{said}") as refused:
        check(name, tokenizer, template)
    assert "\n" not in str(refused.value)


def test_the_check_is_made_before_data_is_read(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"^data\.template=llama3: "):
        Encoder.of(tokenizer, DataConfig(path="nowhere", format="llamafactory", name="d", template="llama3"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_writes_what_is_said_once(name: str) -> None:
    talk = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "ASK"},
        {"role": "assistant", "content": "SAY"},
    ]
    written = text(name, talk, "<s>", "</s>")
    assert [written.count(part) for part in ("SYS", "ASK", "SAY")] == [1, 1, 1]
    assert written.index("SYS") < written.index("ASK") < written.index("SAY")
    assert not any(mark in written for mark in ("<bos>", "<eos>", "{}"))
