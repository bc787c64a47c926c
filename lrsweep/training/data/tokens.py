"""Rows that are tokens already: `input_ids`, and `labels`, which are -100 where nothing is learned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrsweep.config.trial_schema import DataConfig
from lrsweep.errors import InputError
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.reading import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenRows:
    """Reads tokenised rows.

    Attributes:
        config: The data's config.
        vocabulary: How many tokens the model's tokenizer has.
    """

    config: DataConfig
    vocabulary: int

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> "TokenRows":
        """The reader for a tokenizer's rows."""
        return cls(config, len(tokenizer))

    def encode(self, rows: Rows, indices: list[int], part: str) -> tuple[list[Example], int, int]:
        """Reads rows, cut to `data.max_length` tokens; see `Encoder.encode`.

        Rows without `labels` are learned whole.

        Raises:
            InputError: A row is bad, or nothing is left to learn in any of them.
        """
        examples: list[Example] = []
        dropped = cut = 0
        longest = self.config.max_length
        chosen = sorted(indices)
        for index, row in zip(chosen, rows.read(chosen), strict=True):
            ids, labels = self._parts(row, rows.where(index))
            whole = len(ids) <= longest
            learned = (IGNORED, *labels[1:longest])
            if (not whole and self.config.drop_long_rows) or all(label == IGNORED for label in learned):
                dropped += 1
                continue
            examples.append(Example(tuple(ids[:longest]), learned))
            cut += not whole
        if not examples:
            raise InputError(
                f"{rows.where(chosen[0])}: none of the {part} rows has a token to learn within "
                f"data.max_length={longest}; check their labels"
            )
        return examples, dropped, cut

    def _parts(self, row: object, where: str) -> tuple[list[int], list[int]]:
        """A row's tokens and labels. Raises InputError."""
        columns = {name: self.config.columns.get(name, name) for name in ("input_ids", "labels")}
        ids = self._numbers(row, columns["input_ids"], where)
        if IGNORED in ids:
            raise InputError(f"{where}: {IGNORED} is a label and no token; give the token, and {IGNORED} in labels")
        if not isinstance(row, Mapping) or row.get(columns["labels"]) is None:
            return ids, ids
        labels = self._numbers(row, columns["labels"], where)
        if len(labels) != len(ids):
            raise InputError(f"{where}: {len(labels)} labels for {len(ids)} tokens; give as many")
        for token, label in zip(ids, labels, strict=True):
            if label not in (IGNORED, token):
                raise InputError(f"{where}: the label {label} is neither the row's token {token} nor {IGNORED}")
        return ids, labels

    def _numbers(self, row: object, column: str, where: str) -> list[int]:
        """A column's list of tokens. Raises InputError."""
        value: Any = row.get(column) if isinstance(row, Mapping) else None
        if not isinstance(value, list) or not value or not all(type(part) is int for part in value):
            has = ", ".join(list(map(str, row))[:8]) if isinstance(row, Mapping) else type(row).__name__
            raise InputError(f"{where}: field '{column}' is not a list of token numbers (the row has: {has})")
        bad = next((part for part in value if part != IGNORED and not 0 <= part < self.vocabulary), None)
        if bad is not None:
            raise InputError(
                f"{where}: the token {bad} is not one of the tokenizer's {self.vocabulary}; give the model that the "
                "rows were tokenised for"
            )
        return value
