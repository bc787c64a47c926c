"""The formats of fine-tuning rows. Each row becomes a `Chat`, for the tokenizer's chat template, or a `Plain` text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lrsweep.config.trial_schema import DataFormat
from lrsweep.errors import InputError

FIELDS: dict[DataFormat, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
    "messages": ("messages", "tools"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "llamafactory": (),  # its dataset_info.json names the columns
    "axolotl": ("messages", "role", "content", "system", "tools"),
    "tokens": ("input_ids", "labels"),
}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
ROLES = ("system", "developer", "user", "assistant", "tool")

Message = dict[str, Any]


class BadRowError(ValueError):
    """A row cannot be used. Callers add its file and line, and raise an InputError."""


class NothingToLearnError(BadRowError):
    """A row has no answer. It may be left out (`data.on_bad_row`)."""


@dataclass(frozen=True)
class Chat:
    """A conversation, whose assistant messages are learned.

    Attributes:
        messages: The messages, as chat templates take them: `role`, `content` and further keys.
        context: How many of the first messages are not learned.
        tools: The tools that the chat template describes to the model, as it takes them.
    """

    messages: tuple[Message, ...]
    context: int
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Plain:
    """Plain text.

    Attributes:
        prompt: The text before `completion`, not learned; may be empty.
        completion: The text to learn. It follows the prompt directly.
        apart: Whether the two are tokenised one by one.
    """

    prompt: str
    completion: str
    apart: bool = False


def check_columns(row_format: DataFormat, columns: Mapping[str, str]) -> None:
    """Checks that all keys of `data.columns` are fields of the format. Raises InputError."""
    for name in columns:
        if name not in FIELDS[row_format]:
            raise InputError(
                f"data.columns.{name}: format {row_format} has no such field; "
                f"valid: {', '.join(FIELDS[row_format]) or 'none'}"
            )


def parse(
    row: object, row_format: DataFormat, columns: Mapping[str, str], has_template: bool, template: str | None = None
) -> Chat | Plain:
    """Turns a row into a `Chat` or a `Plain`.

    Args:
        row: The row as it was read.
        row_format: Its format.
        columns: The data's column for each field whose name differs from the format's.
        has_template: Whether the tokenizer has a chat template.
        template: For `alpaca` rows one of `ALPACA_TEMPLATES`, the prompt of Stanford's Alpaca; None for a chat
            template.

    Raises:
        BadRowError: The row does not have the format, or has nothing to learn.
    """
    if not isinstance(row, Mapping):
        raise BadRowError(f"a row must be an object with named fields, not {_kind(row)}")
    fields = _Fields(row, columns)
    match row_format:
        case "alpaca":
            return _alpaca(fields, has_template) if template is None else _stanford_alpaca(fields, template)
        case "sharegpt":
            return _sharegpt(fields)
        case "messages" | "llamafactory":
            chat = _chat(_messages(fields.list_of("messages"), fields.column("messages")))
            return replace(chat, tools=_tools(fields)) if fields.has("tools") else chat
        case "axolotl":
            return _axolotl(fields)
        case "prompt_completion":
            return _prompt_completion(fields, has_template)
        case "text":
            return Plain("", _answer(fields, "text"))
        case "tokens":
            raise AssertionError("rows of tokens have no text")  # `TokenRows` reads them


@dataclass(frozen=True)
class _Fields:
    """A row's fields by the format's names, checked when they are read. The getters raise BadRowError."""

    row: Mapping[str, Any]
    columns: Mapping[str, str]

    def column(self, name: str) -> str:
        """The data's column for a field."""
        return self.columns.get(name, name)

    def get(self, name: str) -> Any:
        """A field that must be there and not null."""
        column = self.column(name)
        if column not in self.row:
            has = ", ".join(list(map(str, self.row))[:8]) or "no fields"
            raise BadRowError(f"field '{column}' is missing (the row has: {has})")
        return _not_null(self.row[column], column)

    def has(self, name: str) -> bool:
        """Whether an optional field is there. Null counts as absent, because tables use it for that."""
        return self.row.get(self.column(name)) is not None

    def text(self, name: str) -> str:
        """A field that must be a string."""
        return _text(self.get(name), self.column(name))

    def optional_text(self, name: str) -> str:
        """A field that must be a string if it is there; else empty."""
        return self.text(name) if self.has(name) else ""

    def list_of(self, name: str) -> list[Any]:
        """A field that must be a list with at least one element."""
        turns = _list(self.get(name), self.column(name))
        if not turns:
            raise BadRowError(f"field '{self.column(name)}' is an empty list")
        return turns


def _alpaca(fields: _Fields, has_template: bool) -> Chat | Plain:
    instruction = fields.text("instruction")
    request = "\n".join(part for part in (instruction, fields.optional_text("input")) if part)
    if not request:
        raise BadRowError(f"field '{fields.column('instruction')}' is empty")
    answer = _answer(fields, "output")
    system = fields.optional_text("system")
    history = _history(fields) if fields.has("history") else []
    if has_template:
        opening = [{"role": "system", "content": system}] if system else []
        turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        return _chat([*opening, *history, *turns])
    if history:
        raise BadRowError(
            f"field '{fields.column('history')}' has earlier turns and this tokenizer has no chat template to render "
            "them; use a chat model or leave them out"
        )
    return Plain("".join(part + "\n" for part in (system, request) if part), answer)


# Axolotl's styles of the prompt of Stanford's Alpaca: what the system says, a request with an input, one without.
_ALPACA_STYLES = {
    "alpaca": (
        "{}\n\n",
        "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n",
        "### Instruction:\n{}\n\n### Response:\n",
    ),
    "alpaca:chat": ("SYSTEM: {}\n", "USER: {}\n{}\nASSISTANT:", "USER: {}\nASSISTANT:"),
    "alpaca:chatml": (
        "<|im_start|>system\n{}<|im_end|>\n",
        "<|im_start|>user\n{}\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "alpaca:phi": (
        "<|system|>\n{}<|end|>\n",
        "<|user|>\n{}<|end|>{}<|assistant|>",
        "<|user|>\n{}<|end|>\n<|assistant|>\n",
    ),
}
ALPACA_TEMPLATES = tuple(_ALPACA_STYLES)


def _stanford_alpaca(fields: _Fields, template: str) -> Plain:
    """The row with the prompt of Stanford's Alpaca, tokenised as Axolotl does: prompt and answer one by one."""
    system, with_input, without = _ALPACA_STYLES[template]
    given = fields.optional_text("input")
    about = ", paired with an input that provides further context" if given else ""
    task = f"Below is an instruction that describes a task{about}. Write a response that appropriately completes the "
    instruction = fields.text("instruction")
    request = with_input.format(instruction, given) if given else without.format(instruction)
    return Plain(system.format(f"{task}request.") + request, _answer(fields, "output"), apart=True)


def _answer(fields: _Fields, name: str) -> str:
    """A field that is to be learned."""
    column = fields.column(name)
    if column in fields.row and fields.row[column] is None:
        raise NothingToLearnError(f"field '{column}' is null")
    return _filled(fields.text(name), column)


def _tools(fields: _Fields) -> tuple[Any, ...]:
    """The row's tools: a list, or JSON text of one."""
    column, value = fields.column("tools"), fields.get("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRowError(f"field '{column}' is not a list of tools as JSON") from None
    return tuple(_list(value, column))


def _history(fields: _Fields) -> list[Message]:
    column = fields.column("history")
    messages = []
    for number, pair in enumerate(_list(fields.get("history"), column)):
        at = f"{column}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRowError(f"{at} must be a pair [question, answer]")
        messages.append({"role": "user", "content": _text(pair[0], f"{at}[0]")})
        messages.append({"role": "assistant", "content": _filled(_text(pair[1], f"{at}[1]"), f"{at}[1]")})
    return messages


def _sharegpt(fields: _Fields) -> Chat:
    column = fields.column("conversations")
    messages = []
    for number, turn in enumerate(fields.list_of("conversations")):
        at = f"{column}[{number}]"
        role = _role(turn, "from", at, tuple(SHAREGPT_ROLES))
        messages.append(_message(SHAREGPT_ROLES[role], turn, "value", at))
    system = fields.optional_text("system")
    return _chat([{"role": "system", "content": system}, *messages] if system else messages)


# What Axolotl calls roles otherwise.
AXOLOTL_ROLES = {"human": "user", "gpt": "assistant"}


def _axolotl(fields: _Fields) -> Chat:
    """A row of Axolotl's `type: chat_template`, whose messages may have any roles in any order."""
    role_key, content_key = fields.column("role"), fields.column("content")
    messages: list[Message] = []
    for number, turn in enumerate(fields.list_of("messages")):
        at = f"{fields.column('messages')}[{number}]"
        if not isinstance(turn, Mapping):
            raise BadRowError(f"{at} must be an object, not {_kind(turn)}")
        if not isinstance(turn.get(role_key), str):
            raise BadRowError(f"{at} has no '{role_key}'")
        message = {
            key: value for key, value in turn.items() if key not in (role_key, content_key) and value is not None
        }
        message["role"] = AXOLOTL_ROLES.get(turn[role_key], turn[role_key])
        if turn.get(content_key) is not None:
            message["content"] = _joined(turn[content_key], f"{at}.{content_key}")
        elif not message.get("tool_calls"):
            raise BadRowError(f"{at} has no '{content_key}'")
        messages.append(message)
    if messages[0]["role"] != "system" and fields.has("system"):
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    if not any(message["role"] == "assistant" for message in messages):
        raise NothingToLearnError("no message of the assistant to learn")
    return Chat(tuple(messages), 0, _tools(fields) if fields.has("tools") else ())


def _prompt_completion(fields: _Fields, has_template: bool) -> Chat | Plain:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Plain(fields.text("prompt"), _answer(fields, "completion"))
    before = _messages(fields.list_of("prompt"), fields.column("prompt"))
    after = _messages(fields.list_of("completion"), fields.column("completion"))
    if not has_template:
        raise BadRowError("its prompt is a list of messages and this tokenizer has no chat template; use plain strings")
    return _chat([*before, *after], context=len(before))


def _chat(messages: list[Message], context: int = 0) -> Chat:
    # A first message from the assistant is not learned, because it has no prompt.
    first = max(context, 1)
    if not any(message["role"] == "assistant" for message in messages[first:]):
        raise NothingToLearnError("no assistant turn to learn (one that follows another message)")
    return Chat(tuple(messages), first)


def _messages(turns: list[Any], column: str) -> list[Message]:
    messages = []
    for number, turn in enumerate(turns):
        at = f"{column}[{number}]"
        role = _role(turn, "role", at, ROLES)
        # Templates read further keys (reasoning_content, name), so all of them are kept.
        extra = {key: value for key, value in turn.items() if key not in ("role", "content") and value is not None}
        messages.append(_message(role, turn, "content", at) | extra)
    return messages


def _message(role: str, turn: Mapping[str, Any], key: str, at: str) -> Message:
    if key not in turn:
        raise BadRowError(f"{at} has no '{key}'")
    calls_tools = role == "assistant" and bool(turn.get("tool_calls"))
    if turn[key] is None and calls_tools:
        return {"role": role, "content": ""}  # templates would write None as text
    content = _joined(_not_null(turn[key], f"{at}.{key}"), f"{at}.{key}")
    learned = role == "assistant" and not calls_tools
    return {"role": role, "content": _filled(content, f"{at}.{key}") if learned else content}


def _joined(content: Any, name: str) -> str:
    """A message's text, from a list of its parts too."""
    if not isinstance(content, list):
        return _text(content, name)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
        if kind != "text" or not isinstance(part, Mapping):
            raise BadRowError(f"field '{name}[{number}]' is of type {kind}; trials learn from text alone")
        texts.append(_text(part.get("text"), f"{name}[{number}].text"))
    return "".join(texts)


def _role(turn: object, key: str, at: str, known: tuple[str, ...]) -> str:
    if not isinstance(turn, Mapping):
        raise BadRowError(f"{at} must be an object, not {_kind(turn)}")
    if key not in turn:
        raise BadRowError(f"{at} has no '{key}'")
    role = turn[key]
    if role not in known:
        raise BadRowError(f"{at}.{key} is {role!r}, an unknown role; known: {', '.join(known)}")
    return str(role)


def _not_null(value: Any, name: str) -> Any:
    if value is None:
        raise BadRowError(f"field '{name}' is null")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRowError(f"field '{name}' must be a list, not {_kind(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"field '{name}' must be a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can contain half a surrogate pair, which tokenizers reject without naming the row.
        raise BadRowError(f"field '{name}' has a broken unicode escape (half a surrogate pair)") from None
    return value


def _filled(text: str, name: str) -> str:
    if not text.strip():
        raise NothingToLearnError(f"field '{name}' is empty, so there is nothing to learn")
    return text


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
