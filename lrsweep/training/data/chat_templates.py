"""LLaMA-Factory's templates, held against the tokenizer's own chat template: trials render with the latter.

The table says what its templates write around a turn, for the models most in use. {} is what is said; <bos> and <eos> are
the tokenizer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrsweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Written:
    """What a template writes: around the user's turn and up to the answer, around the answer, around the system's."""

    user: str
    assistant: str = "{}<eos>"
    system: str = "{}"
    opening: str = ""
    default_system: str = ""
    # The system's text stands within the user's first turn.
    system_inside: bool = False


def _chatml(**more: Any) -> Written:
    return Written(
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>\n",
        "<|im_start|>system\n{}<|im_end|>\n",
        **more,
    )


_GEMMA = Written(
    "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "{}<end_of_turn>\n",
    "{}\n\n",
    "<bos>",
    system_inside=True,
)
TEMPLATES: Mapping[str, Written] = {
    "empty": Written("{}", "{}"),
    "default": Written("Human: {}<eos>\nAssistant:", "{}<eos>\n", "System: {}<eos>\n"),
    "alpaca": Written(
        "### Instruction:\n{}\n\n### Response:\n",
        "{}<eos>\n\n",
        default_system="Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n",
    ),
    "vicuna": Written(
        "USER: {} ASSISTANT:",
        default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
    ),
    "chatml": _chatml(),
    "yi": _chatml(),
    "smollm": _chatml(),
    "smollm2": _chatml(default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."),
    "qwen": _chatml(default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3_nothink": _chatml(),
    "llama3": Written(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<bos>",
    ),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "phi": Written("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n", "<|system|>\n{}<|end|>\n"),
    "phi4": Written(
        "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{}<|im_end|>",
        "<|im_start|>system<|im_sep|>{}<|im_end|>",
    ),
    "mistral": Written("[INST] {}[/INST]", " {}<eos>", "{}\n\n", "<bos>", system_inside=True),
    "deepseek3": Written("<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>", opening="<bos>"),
    "zephyr": Written(
        "<|user|>\n{}<eos><|assistant|>\n",
        system="<|system|>\n{}<eos>",
        default_system="You are Zephyr, a helpful assistant.",
    ),
    "granite3": Written(
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{}<|end_of_text|>\n",
        "<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
    ),
}
_TALK = ({"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."})
_PROBES: tuple[Sequence[Mapping[str, str]], ...] = (
    _TALK,
    (*_TALK, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Three."}),
    ({"role": "system", "content": "Be brief."}, *_TALK),
)


def check_name(name: str) -> None:
    """Raises InputError for a template that cannot be held against a tokenizer's."""
    if name not in TEMPLATES:
        raise InputError(
            f"template={name}: lrsweep does not know what it writes (it knows {', '.join(TEMPLATES)}); where it is what the "
            "tokenizer's own chat template writes, take the key out: LLaMA-Factory then uses that too"
        )


def check(name: str, tokenizer: "PreTrainedTokenizerBase", own: str | None) -> None:
    """Raises InputError where the tokenizer's template `own` does not write what LLaMA-Factory's `name` does."""
    check_name(name)
    if own is None:
        raise InputError(
            f"data.template={name}: this model's tokenizer has no chat template that could agree with it; use a chat "
            "(instruct) model, or add a chat_template.jinja to its folder"
        )
    for talk in _PROBES:
        try:
            found = str(tokenizer.apply_chat_template([dict(turn) for turn in talk], chat_template=own, tokenize=False))
        except Exception:
            if talk[0]["role"] == "system":
                continue  # a template without system turns refuses such rows when it meets one
            raise
        expected = text(name, talk, tokenizer.bos_token or "", tokenizer.eos_token or "")
        if found.rstrip("\n") != expected.rstrip("\n"):
            at = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), 0)
            raise InputError(
                f"data.template={name}: LLaMA-Factory writes {expected[max(0, at - 10) : at + 30]!r} where the tokenizer's "
                f"chat template writes {found[max(0, at - 10) : at + 30]!r}; choose this model's template, or take the key out"
            )


def text(name: str, talk: Sequence[Mapping[str, str]], bos: str, eos: str) -> str:
    """The conversation as LLaMA-Factory's template writes it."""
    written = TEMPLATES[name]
    said = written.opening
    system, turns = written.default_system, list(talk)
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    before = written.system.replace("{}", system) if system else ""
    if not written.system_inside:
        said += before
        before = ""
    for turn in turns:
        around = written.user if turn["role"] == "user" else written.assistant
        said += around.replace("{}", before + turn["content"])
        before = ""
    return said.replace("<bos>", bos).replace("<eos>", eos)
