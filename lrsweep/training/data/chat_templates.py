"""LLaMA-Factory's templates, in which its data sets are written, whatever the tokenizer's own chat template is.

`TEMPLATES` has the text that LLaMA-Factory's templates put around each turn, for the most common models; its source is
LLaMA-Factory's `data/template.py`. `{}` stands for the turn's text, `<bos>` and `<eos>` for the tokenizer's tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrsweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """A LLaMA-Factory template.

    Attributes:
        user: A user turn, up to the start of the answer.
        assistant: An answer.
        system: The system message.
        opening: The start of every conversation.
        default_system: The system message of conversations without one.
        system_inside: The system message is part of the first user turn, before its text.
        stops: Tokens that end a turn, which the tokenizer has to have.
        thinks: An answer without a thought gets an empty one, which is learned.
    """

    user: str
    assistant: str = "{}<eos>"
    system: str = "{}"
    opening: str = ""
    default_system: str = ""
    system_inside: bool = False
    stops: tuple[str, ...] = ()
    thinks: bool = False


def _chatml(stops: tuple[str, ...] = ("<|im_end|>",), **more: Any) -> Template:
    return Template(
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>\n",
        "<|im_start|>system\n{}<|im_end|>\n",
        stops=stops,
        **more,
    )


_GEMMA = Template(
    "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "{}<end_of_turn>\n",
    "{}\n\n",
    "<bos>",
    system_inside=True,
    stops=("<end_of_turn>",),
)
# What opens and what closes a thought.
_THOUGHT = ("<think>", "</think>")
TEMPLATES: Mapping[str, Template] = {
    "empty": Template("{}", "{}"),
    "default": Template("Human: {}<eos>\nAssistant:", "{}<eos>\n", "System: {}<eos>\n"),
    "alpaca": Template(
        "### Instruction:\n{}\n\n### Response:\n",
        "{}<eos>\n\n",
        default_system="Below is an instruction that describes a task. Write a response that appropriately completes "
        "the request.\n\n",
    ),
    "vicuna": Template(
        "USER: {} ASSISTANT:",
        default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
    ),
    "chatml": _chatml(stops=("<|im_end|>", "<|im_start|>")),
    "yi": _chatml(),
    "smollm": _chatml(),
    "smollm2": _chatml(default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."),
    "qwen": _chatml(default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": _chatml(thinks=True),
    "qwen3_nothink": _chatml(),
    "qwen3_5": _chatml(thinks=True),
    "qwen3_5_nothink": _chatml(),
    "llama2": Template("<bos>[INST] {} [/INST]", system="<<SYS>>\n{}\n<</SYS>>\n\n", system_inside=True),
    "llama3": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<bos>",
        stops=("<|eot_id|>",),
    ),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "phi": Template(
        "<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n", "<|system|>\n{}<|end|>\n", stops=("<|end|>",)
    ),
    "phi4": Template(
        "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{}<|im_end|>",
        "<|im_start|>system<|im_sep|>{}<|im_end|>",
        stops=("<|im_end|>",),
    ),
    "mistral": Template("[INST] {}[/INST]", " {}<eos>", "{}\n\n", "<bos>", system_inside=True),
    "deepseek3": Template("<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>", opening="<bos>"),
    "zephyr": Template(
        "<|user|>\n{}<eos><|assistant|>\n",
        system="<|system|>\n{}<eos>",
        default_system="You are Zephyr, a helpful assistant.",
    ),
    "granite3": Template(
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{}<|end_of_text|>\n",
        "<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
    ),
}


def check_name(name: str) -> None:
    """Checks that `TEMPLATES` has a template.

    Args:
        name: LLaMA-Factory's name for it.

    Raises:
        InputError: It has not.
    """
    if name not in TEMPLATES:
        raise InputError(
            f"template={name}: lrsweep does not know what it writes (it knows {', '.join(TEMPLATES)}); if the "
            "tokenizer's own chat template writes the same, remove the key: LLaMA-Factory then uses that one too"
        )


def check(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Checks that a tokenizer has the tokens that end a template's turns.

    Args:
        name: LLaMA-Factory's name for the template.
        tokenizer: The model's tokenizer.

    Raises:
        InputError: It has not: LLaMA-Factory would add the token.
    """
    check_name(name)
    for token in TEMPLATES[name].stops:
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise InputError(
                f"data.template={name}: this model's tokenizer has no token {token}, which LLaMA-Factory would add; "
                "choose this model's template"
            )


def pieces(name: str, conversation: Sequence[Mapping[str, str]], bos: str, eos: str) -> list[tuple[str, bool]]:
    """The conversation as LLaMA-Factory's template writes it.

    Args:
        name: LLaMA-Factory's name for the template.
        conversation: Turns with `role` (system, user or assistant) and `content`.
        bos: The tokenizer's BOS token, as text.
        eos: The tokenizer's EOS token, as text.

    Returns:
        The pieces that LLaMA-Factory tokenises one by one, and whether each is part of an answer.
    """
    template = TEMPLATES[name]
    tokens = {"<bos>": bos, "<eos>": eos}
    system, turns = template.default_system, list(conversation)
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"] or system, turns[1:]
    found = [(template.opening, "", False)]
    before = template.system.replace("{}", system) if system else ""
    if not template.system_inside:
        found += [(part, system, False) for part in _parts(template.system) if system]
        before = ""
    for turn in turns:
        answers = turn["role"] == "assistant"
        if answers and template.thinks and not any(mark in turn["content"] for mark in _THOUGHT):
            found.append(("\n\n".join((*_THOUGHT, "")), "", True))
        around = template.assistant if answers else template.user
        found += [(part, before + turn["content"], answers) for part in _parts(around)]
        before = ""
    written = [(tokens.get(part, part.replace("{}", content)), answers) for part, content, answers in found]
    return [(piece, answers) for piece, answers in written if piece]


def _parts(around: str) -> list[str]:
    """The text around a turn, with the tokenizer's tokens by themselves."""
    return re.split("(<bos>|<eos>)", around)
