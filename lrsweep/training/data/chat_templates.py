"""Compares LLaMA-Factory's templates with the tokenizer's own chat template, which trials render with.

`TEMPLATES` has the text that LLaMA-Factory's templates put around each turn, for the most common models; its source is
LLaMA-Factory's `data/template.py`. `{}` stands for the turn's text, `<bos>` and `<eos>` for the tokenizer's tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrsweep.errors import InputError
from lrsweep.training.data.time_limit import TimeLimit

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
    """

    user: str
    assistant: str = "{}<eos>"
    system: str = "{}"
    opening: str = ""
    default_system: str = ""
    system_inside: bool = False


def _chatml(**more: Any) -> Template:
    return Template(
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>\n",
        "<|im_start|>system\n{}<|im_end|>\n",
        **more,
    )


_GEMMA = Template(
    "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "{}<end_of_turn>\n",
    "{}\n\n",
    "<bos>",
    system_inside=True,
)
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
    "chatml": _chatml(),
    "yi": _chatml(),
    "smollm": _chatml(),
    "smollm2": _chatml(default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."),
    "qwen": _chatml(default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3_nothink": _chatml(),
    "llama3": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<bos>",
    ),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "phi": Template("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n", "<|system|>\n{}<|end|>\n"),
    "phi4": Template(
        "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{}<|im_end|>",
        "<|im_start|>system<|im_sep|>{}<|im_end|>",
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
_CONVERSATION = ({"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."})
_PROBES: tuple[Sequence[Mapping[str, str]], ...] = (
    _CONVERSATION,
    (*_CONVERSATION, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Three."}),
    ({"role": "system", "content": "Be brief."}, *_CONVERSATION),
)


def check_name(name: str) -> None:
    """Checks that `TEMPLATES` has a template, so that it can be compared with a tokenizer's.

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


def check(name: str, tokenizer: "PreTrainedTokenizerBase", own: str | None) -> None:
    """Checks that the tokenizer's chat template renders conversations as LLaMA-Factory's template does.

    Args:
        name: LLaMA-Factory's name for the template.
        tokenizer: The model's tokenizer.
        own: The tokenizer's chat template; None if it has none.

    Raises:
        InputError: It does not; the message has the first difference.
    """
    check_name(name)
    if own is None:
        raise InputError(
            f"data.template={name}: this model's tokenizer has no chat template that could agree with it; use a chat "
            "(instruct) model, or add a chat_template.jinja to its folder"
        )
    for conversation in _PROBES:
        try:
            turns = [dict(turn) for turn in conversation]
            with TimeLimit() as limit, limit.block():
                found = str(tokenizer.apply_chat_template(turns, chat_template=own, tokenize=False))
        except Exception:
            if conversation[0]["role"] == "system":
                continue  # a template without system turns raises an error for the rows that have one
            raise
        expected = text(name, conversation, tokenizer.bos_token or "", tokenizer.eos_token or "")
        if found.rstrip("\n") != expected.rstrip("\n"):
            at = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), 0)
            raise InputError(
                f"data.template={name}: LLaMA-Factory writes {expected[max(0, at - 10) : at + 30]!r} where the "
                f"tokenizer's chat template writes {found[max(0, at - 10) : at + 30]!r}; choose this model's template, "
                "or remove the key"
            )


def text(name: str, conversation: Sequence[Mapping[str, str]], bos: str, eos: str) -> str:
    """The conversation as LLaMA-Factory's template renders it.

    Args:
        name: LLaMA-Factory's name for the template.
        conversation: Turns with `role` (system, user or assistant) and `content`.
        bos: The tokenizer's BOS token, as text.
        eos: The tokenizer's EOS token, as text.
    """
    template = TEMPLATES[name]
    rendered = template.opening
    system, turns = template.default_system, list(conversation)
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    before = template.system.replace("{}", system) if system else ""
    if not template.system_inside:
        rendered += before
        before = ""
    for turn in turns:
        around = template.user if turn["role"] == "user" else template.assistant
        rendered += around.replace("{}", before + turn["content"])
        before = ""
    return rendered.replace("<bos>", bos).replace("<eos>", eos)
