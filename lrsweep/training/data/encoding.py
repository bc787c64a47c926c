"""Tokenises rows, through the chat template or as plain text, and labels the tokens to learn."""

import bisect
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.training.data import axolotl_chat, chat_templates
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.formats import BadRowError, Chat, Message, NothingToLearnError, Plain, parse
from lrsweep.training.data.reading import Rows, first_line
from lrsweep.training.data.time_limit import TimeLimit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows tokenised in one call.
CHUNK = 1000
# Some templates put today's date into the prompt, but a sweep that is resumed tomorrow must see the same tokens.
TEMPLATE_DATE = datetime(2025, 1, 1)
TODAY = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")

# The largest share of rows with nothing to learn that is left out.
MOST_BAD = 0.05

# The formats whose rows need a chat template.
_CONVERSATIONS = ("sharegpt", "messages", "llamafactory", "axolotl")

Span = tuple[int, int]
Tools = tuple[Any, ...]
# Indices in a text that no token crosses, in order.
Cuts = tuple[int, ...]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A row as text.

    Attributes:
        text: The text.
        spans: The characters to learn.
        cuts: Where no token crosses.
        plain: Whether BOS and EOS are still to be added.
    """

    text: str
    spans: tuple[Span, ...]
    cuts: Cuts = ()
    plain: bool = False


@dataclass(frozen=True)
class Encoder:
    """Turns rows into Examples; build one with `Encoder.of`.

    A text is tokenised as a whole, as in inference. A token is learned if any of its characters is to be learned.

    Attributes:
        config: The data's format, columns and maximum length.
        tokenizer: The model's tokenizer.
        template: The tokenizer's chat template; None if it has none.
        marks_answers: Whether the template's {% generation %} blocks decide what is learned.
        bos: The tokens to put before plain text.
        eos: The tokens to put after plain text, which are learned.
        axolotl_template: For rows of Axolotl's, its template; None for the tokenizer's.
        limit: The template's time limit.
    """

    config: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    marks_answers: bool
    bos: tuple[int, ...]
    eos: tuple[int, ...]
    axolotl_template: str | None = None
    limit: TimeLimit = field(default_factory=TimeLimit)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> "Encoder":
        """The encoder for a tokenizer. Raises InputError if the tokenizer does not fit the data's format."""
        if not tokenizer.is_fast:
            raise InputError(
                "model.path: its tokenizer gives no character offsets, which masking prompts needs; use a fast one"
            )
        template, opening = _template(tokenizer), tokenizer("")["input_ids"][:1]
        named = axolotl_chat.name_of(config.template, template is not None) if config.format == "axolotl" else None
        written_there = named is not None or (config.format == "llamafactory" and config.template is not None)
        if template is None and config.format in _CONVERSATIONS and not written_there:
            raise InputError(
                f"data.format={config.format}: conversations need a chat template and this model's tokenizer has none; "
                "use a chat (instruct) model, add a chat_template.jinja to its folder, or use format prompt_completion"
            )
        if config.format == "llamafactory" and config.template is not None:
            chat_templates.check(config.template, tokenizer)
        if named is not None:
            axolotl_chat.check_name(named, "data.template")
        marks = template is not None and re.search(r"{%-?\s*generation\s*-?%}", template) is not None
        return cls(
            config=config,
            tokenizer=tokenizer,
            template=template,
            # LLaMA-Factory learns everything that its template writes after the prompt, whatever is marked.
            marks_answers=marks and config.format != "llamafactory",
            axolotl_template=named,
            # Plain text starts with BOS if the tokenizer adds one, and always ends with EOS, which is learned.
            bos=tuple(opening) if opening == [tokenizer.bos_token_id] else (),
            eos=(tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else (),
        )

    def encode(self, rows: Rows, indices: list[int], part: str) -> tuple[list[Example], int, int]:
        """Tokenises rows, cut to `data.max_length` tokens.

        Args:
            rows: The rows.
            indices: The numbers of the rows to tokenise.
            part: `train` or `eval`, for messages.

        Returns:
            The Examples, in the file's order; how many rows were dropped because the cut left nothing to learn; and how
            many of the Examples have lost their end.

        Raises:
            InputError: A row is bad, or nothing is left to learn in any of them.
        """
        with self.limit:
            return self._encode(rows, indices, part)

    def _encode(self, rows: Rows, indices: list[int], part: str) -> tuple[list[Example], int, int]:
        bad: list[str] = []
        texts = self._texts(rows, sorted(indices), bad)
        examples: list[Example] = []
        dropped = cut = 0
        while chunk := list(islice(texts, CHUNK)):
            parts = [_parts(written.text, written.cuts) for written in chunk]
            encoded = self.tokenizer(
                [part for of_row in parts for part in of_row],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            for written, of_row in zip(chunk, parts, strict=True):
                ids, offsets = next(tokens) if len(of_row) == 1 else _joined(of_row, tokens)
                example, whole = self._example(ids, offsets, written)
                if not whole and self.config.drop_long_rows:
                    dropped += 1
                elif any(label != IGNORED for label in example.labels):
                    examples.append(example)
                    cut += not whole
                else:
                    dropped += 1
        if bad:
            log.warning("%s set: %d row(s) left out, which have nothing to learn: %s", part, len(bad), bad[0])
        if not examples and not dropped:
            raise InputError(bad[0])
        if not examples:
            raise InputError(
                f"data.max_length={self.config.max_length}: it cuts off all there is to learn in every {part} row; "
                "raise it"
            )
        return examples, dropped, cut

    def _example(self, ids: list[int], offsets: list[Span], written: Written) -> tuple[Example, bool]:
        """The row's Example, and whether all of the row is in it."""
        labels = [IGNORED] * len(ids)
        if self.config.format == "axolotl":
            ranges = axolotl_chat.learned(written.spans, ids, offsets, self.tokenizer.eos_token_id)
        else:
            ranges = [_tokens(offsets, span) for span in written.spans]
        for first, last in ranges:
            labels[first:last] = ids[first:last]
        if written.plain and tuple(ids[:1]) != self.bos:
            ids, labels = [*self.bos, *ids], [IGNORED] * len(self.bos) + labels
        if written.plain and tuple(ids[-1:]) != self.eos:
            ids, labels = [*ids, *self.eos], [*labels, *self.eos]
        longest = self.config.max_length
        return Example(tuple(ids[:longest]), (IGNORED, *labels[1:longest])), len(ids) <= longest

    def _texts(self, rows: Rows, indices: list[int], bad: list[str]) -> Iterator[Written]:
        """Each row as text. Rows that have nothing to learn are left out, and `bad` gets what is wrong with each."""
        at_most = max(1, math.ceil(MOST_BAD * len(indices))) if self.config.on_bad_row == "drop" else 0
        for index, row in zip(indices, rows.read(indices), strict=True):
            try:
                form = parse(
                    row, self.config.format, self.config.columns, self.template is not None, self.config.template
                )
                if isinstance(form, Plain):
                    text = form.prompt + form.completion
                    cuts = (len(form.prompt),) if form.apart else ()
                    yield Written(text, ((len(form.prompt), len(text)),), cuts, plain=True)
                elif self.config.format == "axolotl":
                    yield self._as_axolotl(form)
                elif self.config.format == "llamafactory" and self.config.template is not None:
                    yield self._as_llamafactory(form, self.config.template)
                else:
                    for text, spans in self._conversation(form):
                        yield Written(text, tuple(spans))
            except NothingToLearnError as fault:
                bad.append(f"{rows.where(index)}: {fault}")
                if len(bad) > at_most:
                    raise InputError(_too_many(bad, at_most, len(indices))) from None
            except BadRowError as fault:
                raise InputError(f"{rows.where(index)}: {fault}") from None

    def _as_axolotl(self, chat: Chat) -> Written:
        """The conversation as Axolotl writes it, with the places of its answers."""
        name = self.axolotl_template
        if name is not None and chat.tools:
            raise BadRowError(f"data.template={name}: a row with tools needs the tokenizer's own template")
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""

        def written(messages: Sequence[Message]) -> str:
            if name is None:
                return self._render(list(messages), chat.tools)
            return axolotl_chat.write(name, messages, bos, eos)

        return Written(*axolotl_chat.answers(chat.messages, written))

    def _as_llamafactory(self, chat: Chat, template: str) -> Written:
        """The conversation in a template of LLaMA-Factory's, which tokenises its pieces one by one."""
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        found = chat_templates.pieces(template, chat.messages, bos, eos)
        ends = tuple(accumulate(len(piece) for piece, _ in found))
        spans = tuple(
            (start, end)
            for (_, answers), start, end in zip(found, (0, *ends), ends, strict=False)
            if answers or self.config.train_on_prompt
        )
        return Written("".join(piece for piece, _ in found), spans, ends[:-1])

    def _conversation(self, chat: Chat) -> list[tuple[str, list[Span]]]:
        """The conversation as the template renders it, with the spans of its answers.

        With a template that rewrites earlier answers (Qwen3 removes their thinking), there is one text for each answer,
        with the prompt that the model would have seen for it.
        """
        messages = list(chat.messages)
        if self.config.train_on_prompt:
            text = self._render(messages, chat.tools)
            return [(text, [(0, len(text))])]
        if self.marks_answers:
            return [self._marked(messages, chat)]
        whole = self._render(messages, chat.tools)
        texts = []
        for number in range(chat.context, len(messages)):
            if messages[number]["role"] == "assistant":
                text = self._render(messages[: number + 1], chat.tools) if number + 1 < len(messages) else whole
                texts.append((text, [(self._prompt_end(messages[:number], text, chat.tools), len(text))]))
        if all(whole.startswith(text) for text, _ in texts):
            return [(whole, [span for _, spans in texts for span in spans])]
        return texts

    def _marked(self, messages: list[Message], chat: Chat) -> tuple[str, list[Span]]:
        """The conversation's text, and the spans that the template's {% generation %} blocks mark."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _template_errors(), self.limit.block():
            [text], [spans] = render_jinja_template(
                conversations=[messages],
                tools=list(chat.tools) or None,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        answers = sum(message["role"] == "assistant" for message in messages)
        learned = sum(message["role"] == "assistant" for message in messages[chat.context :])
        if not spans or (learned < answers and len(spans) != answers):
            raise BadRowError(f"the chat template's {{% generation %}} blocks mark {len(spans)} of {answers} answers")
        return text, spans if learned == answers else spans[-learned:]

    def _prompt_end(self, before: list[Message], text: str, tools: Tools) -> int:
        """The index in `text` of the first character of the answer to the messages `before`."""
        asked = self._render(before, tools, ask=True)
        end = len(asked) if text.startswith(asked) else 0
        if not end and text.startswith(self._render(before, tools)):
            # The generation prompt may end in what the full text lacks (DeepSeek-R1's <think>): use the common prefix.
            end = next((at for at, (one, other) in enumerate(zip(asked, text, strict=False)) if one != other), 0)
        if not 0 < end < len(text):
            raise BadRowError(
                "the chat template does not write this conversation as a prompt followed by its answer, so the two "
                "cannot be separated; mark the answers in the template with {% generation %}"
            )
        return end

    def _render(self, messages: list[Message], tools: Tools, ask: bool = False) -> str:
        with _template_errors(), self.limit.block():
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=ask,
            )
        return str(text)


def _parts(text: str, cuts: Cuts) -> list[str]:
    return [text[start:end] for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True)]


def _tokens(offsets: list[Span], span: Span) -> tuple[int, int]:
    """The tokens of which any character is in a span."""
    start, end = span
    # Compare ends: byte-level tokenizers may leave leading spaces out of a token's offsets, but never its end.
    first = bisect.bisect_right(offsets, start, key=_end)
    last = bisect.bisect_right(offsets, end, key=_end)
    return first, last + (last < len(offsets) and offsets[last][0] < end)


def _joined(parts: list[str], tokens: Iterator[tuple[list[int], list[Span]]]) -> tuple[list[int], list[Span]]:
    """The tokens of a text whose parts are tokenised one by one, with their offsets in the text."""
    ids: list[int] = []
    offsets: list[Span] = []
    start = 0
    for part, (part_ids, part_offsets) in zip(parts, tokens, strict=False):
        ids += part_ids
        # A token without characters, such as the space that some tokenizers put first, is the part's too.
        offsets += [(start + first, start + max(last, 1)) for first, last in part_offsets]
        start += len(part)
    return ids, offsets


def _too_many(bad: list[str], at_most: int, rows: int) -> str:
    if not at_most:
        return bad[0]
    return (
        f"{bad[0]}; more than {at_most} of {rows} rows are like that; correct them, as a sweep leaves out at most "
        f"{MOST_BAD:.0%}"
    )


def _end(offset: Span) -> int:
    return offset[1]


def _template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's chat template with today's date replaced by a fixed one; None if it has no template."""
    if not tokenizer.chat_template:
        return None
    try:
        template = tokenizer.get_chat_template()
    except ValueError as fault:
        raise InputError(f"model.path: {first_line(fault)}") from None
    return TODAY.sub(lambda call: repr(TEMPLATE_DATE.strftime(call["format"])), template)


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turns the chat template's errors into BadRowErrors."""
    try:
        yield
    except Exception as fault:  # a template is a program, which can raise any error
        raise BadRowError(f"the chat template refuses it: {first_line(fault)}") from None
