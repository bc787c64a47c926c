"""Conversations as Axolotl's `type: chat_template` writes and labels them.

`TEMPLATES` has what Axolotl's own templates put around each message, by their names there (`utils/chat_templates`), for
text; its labels are those of its `prompt_strategies/chat_template.py`, in version 0.19.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrsweep.errors import InputError
from lrsweep.training.data.formats import BadRowError, Message

Span = tuple[int, int]
# Axolotl takes an end token for a turn's if it follows within this many tokens.
_NEAR = 3
# What stands for an answer where Axolotl looks for its place.
_PLACEHOLDERS = ("[[dummy_message]]", "zzdummymessagezz")
_OPEN, _CLOSE = "<think>", "</think>"
_ROLES = ("system", "user", "assistant")
TOKENIZERS_OWN = "tokenizer_default"
_FALLBACK = "tokenizer_default_fallback_"


@dataclass(frozen=True)
class Template:
    """A template of Axolotl's. In its texts, `{}` stands for a message's text, and `{role}` for its role.

    Attributes:
        user: A user's message.
        assistant: An answer.
        system: The system's message at the start; None if the template refuses it.
        later_system: The system's message further on; None if the template leaves it out.
        opening: Whether the conversation begins with the BOS token.
        default_system: The text of the system's message if there is none.
        strips: Whether spaces around the texts of the user and the assistant are left out.
        strips_system: The same for the system's.
        alternates: Whether the template refuses messages that do not alternate between user and assistant.
        system_inside: Whether the system's message is part of the user's first, before its text.
        drops_empty: Whether a system's message without a text is left out.
        between: What stands between messages.
        thinks: Whether the last answer has a thought, which may be empty, and earlier ones have none.
    """

    user: str
    assistant: str
    system: str | None = None
    later_system: str | None = None
    opening: bool = True
    default_system: str = ""
    strips: bool = False
    strips_system: bool = False
    alternates: bool = False
    system_inside: bool = False
    drops_empty: bool = False
    between: str = ""
    thinks: bool = False


def _same(text: str, **more: Any) -> Template:
    """A template that writes every message alike."""
    return Template(text, text, text, text, **more)


_CHATML = "<|im_start|>{role}\n{}<|im_end|>\n"
_TURN = "<start_of_turn>{role}\n{}<end_of_turn>\n"
_GEMMA = Template(
    _TURN, _TURN.replace("{role}", "model"), None, _TURN, strips=True, strips_system=True, alternates=True
)
_GEMMA3 = replace(_GEMMA, system="{}\n\n", system_inside=True, strips_system=False)
_PHI = "<|system|>\n{}<|end|>\n"
_COHERE = Template(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    strips=True,
    alternates=True,
)
TEMPLATES: Mapping[str, Template] = {
    "chatml": _same(_CHATML, opening=False),
    "falcon_h1": Template(_CHATML, _CHATML, _CHATML),
    "qwen_25": _same(
        _CHATML, opening=False, default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "qwen3": _same(_CHATML, opening=False, thinks=True),
    "qwen3_5": _same(_CHATML, opening=False, thinks=True),
    "llama3": _same("<|start_header_id|>{role}<|end_header_id|>\n\n{}<|eot_id|>", strips=True, strips_system=True),
    "gemma": _GEMMA,
    "gemma3": _GEMMA3,
    "gemma3n": _GEMMA3,
    "phi_3": Template("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n", _PHI, _PHI),
    "phi_35": Template(
        "<|user|>\n{}<|end|>\n", "<|assistant|>\n{}<|end|>\n", _PHI, _PHI, opening=False, drops_empty=True
    ),
    "cohere": _COHERE,
    "aya": _COHERE,
    "deepseek_v2": Template("<\uff5cUser\uff5c>{}", "<\uff5cAssistant\uff5c>{}<eos>", "{}\n\n", "{}\n\n"),
    "alpaca": Template("### Instruction:\n{}", "### Response:\n{}<eos>", "{}", "", between="\n\n"),
}


def name_of(template: str | None, has_own: bool) -> str | None:
    """Which of `TEMPLATES` is used; None for the tokenizer's own.

    Args:
        template: Axolotl's `chat_template`; None is `tokenizer_default`.
        has_own: Whether the tokenizer has a chat template.
    """
    if template is None or template == TOKENIZERS_OWN:
        return None
    if template.startswith(_FALLBACK):
        return None if has_own else template.removeprefix(_FALLBACK)
    return template


def check_name(template: str, key: str = "chat_template") -> None:
    """Checks that a value of Axolotl's `chat_template` is known.

    Args:
        template: The value.
        key: The key that has it, for the message.

    Raises:
        InputError: It is not.
    """
    name = name_of(template, False)
    if name is not None and name not in TEMPLATES:
        raise InputError(
            f"{key}={template}: lrsweep does not know what it writes (it knows {TOKENIZERS_OWN}, "
            f"{', '.join(TEMPLATES)})"
        )


def write(name: str, messages: Sequence[Message], bos: str, eos: str) -> str:
    """Messages as one of Axolotl's templates writes them.

    Args:
        name: One of `TEMPLATES`.
        messages: The messages: `role`, `content`, and in `reasoning_content` a thought.
        bos: The tokenizer's BOS token, as text; empty if it has none.
        eos: The tokenizer's EOS token.

    Raises:
        BadRowError: The template refuses the messages, or they call tools.
    """
    template = TEMPLATES[name]
    _check(name, messages)
    opened = messages[0]["role"] == "system"
    system, turns = (messages[0]["content"], messages[1:]) if opened else (template.default_system, messages)
    written = [_filled(template.system or "", "system", system, template.strips_system)]
    if not system and (template.drops_empty or not opened):
        written = []
    asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1)
    texts = {"user": template.user, "assistant": template.assistant, "system": template.later_system}
    for at, message in enumerate(turns, len(messages) - len(turns)):
        role, content = message["role"], message["content"]
        around = texts[role]
        if around is None or (template.drops_empty and role == "system" and not content):
            continue
        if template.thinks and role == "assistant":
            content = _with_thought(message, at > asked, at == len(messages) - 1)
        strips = template.strips_system if role == "system" else template.strips
        content = content.strip() if strips else content
        if template.system_inside and message is turns[0]:
            content = "".join(written) + content
            written = []
        written.append(_filled(around.replace("<eos>", eos), role, content))
    return (bos if template.opening else "") + template.between.join(written)


def _check(name: str, messages: Sequence[Message]) -> None:
    """Checks that a template writes messages. Raises BadRowError."""
    template = TEMPLATES[name]
    for message in messages:
        if message["role"] not in _ROLES or message.get("tool_calls"):
            raise BadRowError(
                f"data.template={name}: lrsweep knows what it writes for system, user and assistant, and not for tools "
                f"or {message['role']}; use your trainer's own command"
            )
    opened = messages[0]["role"] == "system"
    if opened and template.system is None:
        raise BadRowError(f"data.template={name} refuses a system message")
    for at, message in enumerate(messages[1:] if opened else messages):
        if template.alternates and (message["role"] == "user") != (at % 2 == 0):
            raise BadRowError(f"data.template={name} refuses roles that do not alternate between user and assistant")


def _filled(text: str, role: str, content: str, strips: bool = False) -> str:
    """The text around a message with the message in it."""
    return text.replace("{role}", role).replace("{}", content.strip() if strips else content, 1)


def _with_thought(message: Message, after_question: bool, last: bool) -> str:
    """An answer as Qwen3's template writes it: a thought only after the last question, and always at the very end."""
    content, thought = str(message["content"]), message.get("reasoning_content")
    if not isinstance(thought, str):
        thought = ""
        if _CLOSE in content:
            thought = content.split(_CLOSE)[0].rstrip("\n").split(_OPEN)[-1].lstrip("\n")
            content = content.split(_CLOSE)[-1].lstrip("\n")
    if not after_question or not (last or thought):
        return content
    closed = thought.strip("\n")
    return f"{_OPEN}\n{closed}\n{_CLOSE}\n\n" + content.lstrip("\n")


def answers(messages: Sequence[Message], written: Callable[[Sequence[Message]], str]) -> tuple[str, tuple[Span, ...]]:
    """The conversation's text, and where its answers are.

    Axolotl finds an answer where the text differs from that with a placeholder in its place. A place of (-1, -1) is
    that of an answer which it does not find.

    Args:
        messages: The conversation.
        written: Writes messages.
    """
    text = written(messages)
    found = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Beside the template's own characters, one placeholder may seem shorter than it is, and the other does not.
        others = [
            written([*messages[:at], {"role": message["role"], "content": placeholder}, *messages[at + 1 :]])
            for placeholder in _PLACEHOLDERS
        ]
        places = [_difference(text, other) for other in others]
        start, end = min(start for start, _ in places), max(end for _, end in places)
        found.append((start, end) if end > start else (-1, -1))
    return text, tuple(found)


def _difference(text: str, other: str) -> Span:
    """Where a text differs from another: from the first to the last difference."""
    start = _alike(text, other)
    shorter = min(len(text), len(other)) - start
    return start, len(text) - min(_alike(text[::-1], other[::-1]), shorter)


def _alike(text: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    # Comparing slices takes a fiftieth of the time that comparing characters does.
    lengths = range(1, min(len(text), len(other)) + 1)
    return bisect.bisect_left(lengths, True, key=lambda length: text[:length] != other[:length])


def learned(places: Sequence[Span], ids: Sequence[int], offsets: Sequence[Span], eos: int | None) -> list[Span]:
    """The ranges of tokens that are learned: answers, and the EOS tokens that end them.

    Args:
        places: Where the answers are in the text.
        ids: The text's tokens.
        offsets: Where each token is in the text.
        eos: The tokenizer's EOS token.
    """
    ranges = []
    for first, last in places:
        start = bisect.bisect_right(offsets, first, key=lambda offset: offset[1])
        end = bisect.bisect_left(offsets, last, key=lambda offset: offset[0])
        if first < 0 or end <= start:
            start = end = -1
        else:
            ranges.append((start, end))
        closing = next((place for place in range(end, len(ids)) if ids[place] == eos), -1)
        if closing >= 0 and abs(closing - end) <= _NEAR:
            ranges.append((closing, closing + 1))
    return ranges
