"""Regular expressions in the config, and the patterns that name the parameters to train."""

import re
from dataclasses import dataclass
from typing import Self


def regular_expression(value: str) -> str:
    """Returns a regular expression as it is. Raises ValueError if it is none, or may take for ever."""
    if re.search(r"[+*}][)][+*{]", value):
        raise ValueError(f"{value!r}: a repeated group that ends in a repetition may take for ever; write it simpler")
    try:
        re.compile(value)
    except re.error as fault:
        raise ValueError(f"{value!r} is no regular expression: {fault}") from None
    return value


def parameter_pattern(value: str) -> str:
    """Returns a pattern of `finetune.unfrozen_parameters` as it is. Raises ValueError if it is none."""
    ParameterPattern.parse(value)
    return value


@dataclass(frozen=True)
class ParameterPattern:
    """A pattern for names of parameters, with the meaning that it has in Axolotl.

    Attributes:
        names: Matches the start of a name.
        rows: The first row that is trained, and the one after the last; None for the parameter's end. None for all.
    """

    names: re.Pattern[str]
    rows: tuple[int, int | None] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a pattern such as `^model.embed_tokens.weight$[:32000]`.

        A range at the end is split off first, so that `layers.[5]` is row 5 of parameters that start with `layers.`. A
        dot stands for a dot, except before a plus. Hence a dot with a backslash before it stands for a backslash and
        any character, which no name has.

        Raises:
            ValueError: It is no regular expression, or its range has no rows.
        """
        found = re.fullmatch(r"(.+)\[([0-9]*)(?:(:)([0-9]*))?\]", text)
        rows: tuple[int, int | None] | None = None
        if found is not None:
            first = int(found[2] or 0)
            single = found[2] and not found[3]
            rows = (first, first + 1 if single else int(found[4]) if found[4] else None)
            if rows[1] is not None and rows[1] <= first:
                raise ValueError(f"{text!r}: its range holds no rows; write it as [start:end]")
        expression = text if found is None else found[1]
        # First as it was written, for the message.
        literal = re.sub(r"\.(?!\+)", r"\\.", regular_expression(expression))
        return cls(re.compile(regular_expression(literal)), rows)
