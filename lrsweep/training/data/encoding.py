"""Tokenised rows: the chat template or plain text, and which tokens are learned."""

import bisect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.training.data import chat_templates
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.formats import BadRowError, Chat, Message, Plain, parse
from lrsweep.training.data.reading import Rows, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows tokenised in one call.
CHUNK = 1000
# Some templates write today's date into the prompt; a sweep resumed tomorrow must see the same tokens.
TEMPLATE_DATE = datetime(2025, 1, 1)
TODAY = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoder:
    """Rows to Examples. `template` is the tokenizer's chat template, None where it has none.

    A text is tokenised whole, as the model would meet it; a token is learned if any of its characters are.
    """

    config: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    marks_answers: bool
    bos: tuple[int, ...]
    eos: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> "Encoder":
        """Raises InputError for a tokenizer that cannot serve the format."""
        if not tokenizer.is_fast:
            raise InputError(
                "model.path: its tokenizer gives no character offsets, which masking prompts needs; use a fast one"
            )
        template, opening = _template(tokenizer), tokenizer("")["input_ids"][:1]
        if template is None and config.format in ("sharegpt", "messages", "llamafactory"):
            raise InputError(
                f"data.format={config.format}: conversations need a chat template and this model's tokenizer has none; "
                "use a chat (instruct) model, add a chat_template.jinja to its folder, or use format prompt_completion"
            )
        if config.template is not None:
            chat_templates.check(config.template, tokenizer, template)
        marks = template is not None and re.search(r"{%-?\s*generation\s*-?%}", template) is not None
        return cls(
            config=config,
            tokenizer=tokenizer,
            template=template,
            # LLaMA-Factory learns all that its template writes after the prompt, whatever is marked.
            marks_answers=marks and config.format != "llamafactory",
            # Plain text gets the tokenizer's opening token, if it has the habit, and always an end to learn.
            bos=tuple(opening) if opening == [tokenizer.bos_token_id] else (),
            eos=(tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else (),
        )

    def encode(self, rows: Rows, indices: list[int], what: str) -> tuple[list[Example], int, int]:
        """The Examples of these rows, in the file's order; how many more were dropped with nothing left to learn; how many of
        the Examples have lost their end.
        """
        texts = self._texts(rows, sorted(indices))
        examples: list[Example] = []
        dropped = cut = 0
        while chunk := list(islice(texts, CHUNK)):
            encoded = self.tokenizer(
                [text for text, _, _ in chunk],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for (_, spans, plain), ids, offsets in zip(
                chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                example, whole = self._example(ids, offsets, spans, plain)
                if any(label != IGNORED for label in example.labels):
                    examples.append(example)
                    cut += not whole
                else:
                    dropped += 1
        if not examples:
            raise InputError(
                f"data.max_length={self.config.max_length}: it cuts off all there is to learn in every {what} row; raise it"
            )
        return examples, dropped, cut

    def _example(self, ids: list[int], offsets: list[Span], spans: list[Span], plain: bool) -> tuple[Example, bool]:
        """The row's Example, and whether all of the row is in it."""
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            # By the ends: byte-level tokenizers may cut a token's leading spaces from its offsets, never what follows.
            first = bisect.bisect_right(offsets, start, key=_end)
            last = bisect.bisect_right(offsets, end, key=_end)
            if last < len(ids) and offsets[last][0] < end:
                last += 1
            labels[first:last] = ids[first:last]
        if plain and tuple(ids[:1]) != self.bos:
            ids, labels = [*self.bos, *ids], [IGNORED] * len(self.bos) + labels
        if plain and tuple(ids[-1:]) != self.eos:
            ids, labels = [*ids, *self.eos], [*labels, *self.eos]
        longest = self.config.max_length
        return Example(tuple(ids[:longest]), (IGNORED, *labels[1:longest])), len(ids) <= longest

    def _texts(self, rows: Rows, indices: list[int]) -> Iterator[tuple[str, list[Span], bool]]:
        """Each row's text, the character spans to learn, and whether the text is plain (a template adds its own ends)."""
        for index, row in zip(indices, rows.read(indices), strict=True):
            try:
                form = parse(row, self.config.format, self.config.columns, has_template=self.template is not None)
                if isinstance(form, Plain):
                    text = form.prompt + form.completion
                    yield text, [(len(form.prompt), len(text))], True
                else:
                    for text, spans in self._conversation(form):
                        yield text, spans, False
            except BadRowError as fault:
                raise InputError(f"{rows.where(index)}: {fault}") from None

    def _conversation(self, chat: Chat) -> list[tuple[str, list[Span]]]:
        """The conversation as the template writes it, with the spans its answers take.

        A template that rewrites earlier answers (Qwen3 drops their thinking) makes one text per answer: each answer as
        the model would have been asked for it.
        """
        messages = list(chat.messages)
        if self.marks_answers:
            return [self._marked(messages, chat.context)]
        whole = self._render(messages)
        texts = []
        for number in range(chat.context, len(messages)):
            if messages[number]["role"] == "assistant":
                text = self._render(messages[: number + 1]) if number + 1 < len(messages) else whole
                texts.append((text, [(self._prompt_end(messages[:number], text), len(text))]))
        if all(whole.startswith(text) for text, _ in texts):
            return [(whole, [span for _, spans in texts for span in spans])]
        return texts

    def _marked(self, messages: list[Message], context: int) -> tuple[str, list[Span]]:
        """As the template's own {% generation %} blocks say."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _blaming_the_template():
            [text], [spans] = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        answers = sum(message["role"] == "assistant" for message in messages)
        learned = sum(message["role"] == "assistant" for message in messages[context:])
        if not spans or (learned < answers and len(spans) != answers):
            raise BadRowError(f"the chat template's {{% generation %}} blocks mark {len(spans)} of {answers} answers")
        return text, spans if learned == answers else spans[-learned:]

    def _prompt_end(self, before: list[Message], text: str) -> int:
        """Where in `text` the answer to the messages `before` starts, in characters."""
        asked = self._render(before, ask=True)
        end = len(asked) if text.startswith(asked) else 0
        if not end and text.startswith(self._render(before)):
            # The generation prompt may open what the full text lacks (DeepSeek-R1's <think>): the shared part counts.
            end = next((at for at, (one, other) in enumerate(zip(asked, text, strict=False)) if one != other), 0)
        if not 0 < end < len(text):
            raise BadRowError(
                "the chat template does not write this conversation as a prompt followed by its answer, so the two cannot "
                "be told apart; mark the answers in the template with {% generation %}"
            )
        return end

    def _render(self, messages: list[Message], ask: bool = False) -> str:
        with _blaming_the_template():
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=ask
            )
        return str(text)


def _end(offset: Span) -> int:
    return offset[1]


def _template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        template = tokenizer.get_chat_template()
    except ValueError as fault:
        raise InputError(f"model.path: {first_line(fault)}") from None
    return TODAY.sub(lambda call: repr(TEMPLATE_DATE.strftime(call["format"])), template)


@contextmanager
def _blaming_the_template() -> Iterator[None]:
    try:
        yield
    except Exception as fault:  # a template is somebody's program: it can raise anything
        raise BadRowError(f"the chat template refuses it: {first_line(fault)}") from None
